"""Make the frozen models: `python -m pretraining autoencoder|clip|decoder --out FOLDER`.

They learn from the faces of a CelebA-HQ folder (`--faces`), or from drawn ones of another seed than
the demo's. A decoder is fine-tuned, from `--from`, for the latents of an autoencoder, which stay
the same; it is saved without its encoder.
"""

import argparse
import importlib
import json
import shlex
import sys
from pathlib import Path

from command_line import command, path
from config import CODE
from files import write_json
from pretraining.decoder_config import DecoderConfig
from settings import override

KINDS = ("autoencoder", "clip", "decoder")  # each made by the module of its name


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in KINDS:
        options = kinds.add_parser(what)
        options.add_argument("--faces", type=path, help="a CelebA-HQ folder; default: drawn faces")
        options.add_argument("--image-size", type=int, default=64, help="pixels that are encoded")
        options.add_argument("--minutes", type=float, default=20.0, help="of training")
        options.add_argument("--out", type=path, required=True, help="folder of what is made")
    help = "hub id or folder of the autoencoder or decoder to start from"
    options.add_argument("--from", dest="source", required=True, metavar="MODEL", help=help)
    help = "whose latents are decoded, where --from holds a decoder alone"
    options.add_argument("--autoencoder", metavar="MODEL", help=help)
    help = "pixels decoded: as many as --from makes, or (AutoencoderTiny) twice"
    options.add_argument("--picture-size", type=int, help=help)
    options.add_argument("--sampled", type=path, help="latents (python -m pretraining.latents)")
    help = "change a setting of pretraining/decoder_config.py; may be given several times"
    options.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="FIELD=VALUE", help=help
    )
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error(f"--minutes {arguments.minutes:g}: give more than 0")
    return arguments


def how_made(source: str | None) -> str:
    """The command, without the folders of this machine, and its commit, whose options it takes;
    behind that of the model it began with.
    """

    def without_folder(word: str) -> str:
        option, equals, value = word.rpartition("=")
        return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word

    from training.run_folder import commit_of  # which imports torch

    words, commit = shlex.join(map(without_folder, sys.argv[1:])), commit_of(CODE)
    commands = [f"python -m pretraining {words} (commit {commit})"]
    before = Path(source or "") / "measured.json"
    if before.is_file():
        commands.insert(0, json.loads(before.read_text(encoding="utf-8"))["made_by"])
    return ", then ".join(commands)


@command
def main() -> None:
    """Make a model, and write what was measured of it into its folder."""
    arguments = read_arguments()
    if arguments.what == "decoder":
        arguments.config = override(DecoderConfig(arguments.minutes), arguments.changes)
    # torch takes seconds to import: a wrong word is answered before that.
    facts = importlib.import_module(f"pretraining.{arguments.what}").make(arguments)
    made_by = how_made(getattr(arguments, "source", None))
    source = "the faces of a folder" if arguments.faces else "drawn faces"
    write_json(arguments.out / "measured.json", {"made_by": made_by, "from": source, **facts})
    print(f"{arguments.out}: {facts}")


if __name__ == "__main__":
    main()
