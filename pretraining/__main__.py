"""Make the frozen models: `python -m pretraining autoencoder|clip|decoder --out FOLDER`.

They learn from the faces of a CelebA-HQ folder (`--faces`), or from drawn ones of another seed than
the demo's. A decoder is fine-tuned, from `--from`, for the latents of an autoencoder, which stay
the same; it is saved without its encoder.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from command_line import command, path
from config import override
from custom_datasets.captions import describe
from files import write_json
from models.decoder import is_alone, open_beside, rounded_encoder, save_decoder_alone
from models.device import choose_device
from models.loading import locate
from models.text_encoder import save_tokenizer
from models.vae_wrapper import VAEWrapper
from pretraining import clip
from pretraining.adversary import Perception
from pretraining.autoencoder import set_scaling_factor, train_autoencoder
from pretraining.common import choose, measure, open_splits
from pretraining.decoder import DecoderConfig, train_decoder
from pretraining.growing import grown

MEASURED = 1000  # held-out faces at most


def make_autoencoder(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure an autoencoder."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    images, held_out = train.all_images(), test.all_images()
    model = train_autoencoder(images, arguments.minutes, choose_device())
    factor = set_scaling_factor(model, images[choose(len(images), MEASURED)])
    facts = measure(VAEWrapper(model), held_out, held_out)
    _save_half(model, arguments.out)
    return facts | {"scaling_factor": factor}


def make_clip(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure a CLIP with its tokenizer and image processor."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    # Of captions of all kinds, so that every word of the grammar becomes a token.
    people = enumerate(clip.random_people(20_000, 0))
    tokenizer = clip.train_tokenizer([describe(person, number) for number, person in people])

    def caption(face: int, step: int) -> str:
        return describe(train.attributes[face], face, step)

    images = train.all_images()
    model = clip.train_clip(images, caption, tokenizer, arguments.minutes, choose_device())
    shown = choose(len(test), 100)
    told = [describe(row, i, seed=7) for i, row in enumerate(test.attributes[shown])]
    facts = clip.retrieval_accuracy(model, tokenizer, test.all_images()[shown], told)
    _save_half(model, arguments.out)
    save_tokenizer(tokenizer, arguments.out)
    clip.build_image_processor(train.image_size).save_pretrained(arguments.out)
    return facts


def _save_half(model: torch.nn.Module, out: Path) -> None:
    """As float16: half the size, and more precise than these models are."""
    model.half().save_pretrained(out, safe_serialization=True)


def make_decoder(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a decoder, save it without its encoder, and measure it on held-out faces.

    Raises:
        ImportError: see `Perception`.
        ValueError: the autoencoder, the sizes, the latents or the faces do not fit each other.
    """
    config = override(DecoderConfig(minutes=arguments.minutes), arguments.changes)
    size, out, device = arguments.image_size, arguments.out, choose_device()
    picture_size = arguments.picture_size or size
    Perception()  # where its packages are missing, say so before the faces are read
    autoencoder, before = open_start(arguments.source, arguments.autoencoder, out)
    start = grown(before, size, picture_size)
    sampled = read_latents(arguments.sampled, before, size) if arguments.sampled else None
    small, large = (open_splits(arguments.faces, pixels) for pixels in (size, picture_size))
    faces = small[0].all_images(), large[0].all_images()
    *_, trained = train_decoder(start, *faces, config, device, sampled)
    save_decoder_alone(trained.averaged, out)
    shown = choose(len(small[1]), MEASURED)
    held_out = small[1].images(shown), large[1].images(shown)
    return {
        "image_size": size,
        "picture_size": picture_size,
        "encoder": rounded_encoder(autoencoder),
        "settings": asdict(config),
        "steps": trained.step,
        "measured_on": f"{len(shown)} faces of the test split, in a random order",
        "before": measure(before.to(device), *held_out),
        "after": measure(open_beside(str(out), autoencoder).to(device), *held_out),
    }


def open_start(source: str, autoencoder: str | None, out: Path) -> tuple[VAEWrapper, VAEWrapper]:
    """The autoencoder of the latents, and the same with the decoder to start from.

    Raises:
        ValueError: a decoder without its autoencoder, or one that would be overwritten.
    """
    if Path(locate(source)).resolve() == out.resolve():
        raise ValueError(f"--out {out} is --from: the original would be lost; name another folder")
    name = autoencoder if is_alone(source) else source
    if not name:
        raise ValueError(f"{source} holds no encoder: name its autoencoder with --autoencoder")
    whole = VAEWrapper.from_pretrained(name)
    return whole, open_beside(source, whole)


def read_latents(file: Path, vae: VAEWrapper, image_size: int) -> Tensor:
    """Latents (M, C, h, w) that `pretraining.latents` sampled.

    Raises:
        ValueError: they do not have the shape of this autoencoder's, or are not finite.
    """
    latents, side = torch.from_numpy(np.load(file)), image_size // vae.downsampling
    shape = (vae.latent_channels, side, side)
    if latents.shape[1:] != shape or not len(latents) or not latents.isfinite().all():
        raise ValueError(f"--sampled {file} holds {tuple(latents.shape)}, not finite (M, *{shape})")
    return latents


MAKERS = {"autoencoder": make_autoencoder, "clip": make_clip, "decoder": make_decoder}


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in MAKERS:
        options = kinds.add_parser(what)
        options.add_argument("--faces", type=path, help="a CelebA-HQ folder; default: drawn faces")
        options.add_argument("--image-size", type=int, default=64, help="pixels that are encoded")
        options.add_argument("--minutes", type=float, default=20.0, help="of training")
        options.add_argument("--out", type=path, required=True, help="folder of what is made")
    help = "hub id or folder of the autoencoder or decoder to start from"
    options.add_argument("--from", dest="source", required=True, metavar="MODEL", help=help)
    help = "whose latents are decoded, where --from holds a decoder alone"
    options.add_argument("--autoencoder", metavar="MODEL", help=help)
    options.add_argument("--picture-size", type=int, help="pixels decoded: as many, or twice")
    options.add_argument("--sampled", type=path, help="latents (python -m pretraining.latents)")
    help = "change a setting of pretraining/decoder.py; may be given several times"
    options.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="FIELD=VALUE", help=help
    )
    return parser.parse_args()


def how_made(source: str | None) -> str:
    """The command, without the folders of this machine, behind that of the model it began with."""

    def without_folder(word: str) -> str:
        option, equals, value = word.rpartition("=")
        return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word

    commands = [f"python -m pretraining {shlex.join(map(without_folder, sys.argv[1:]))}"]
    before = Path(source or "") / "measured.json"
    if before.is_file():
        commands.insert(0, json.loads(before.read_text(encoding="utf-8"))["made_by"])
    return ", then ".join(commands)


@command
def main() -> None:
    """Make a model, and write what was measured of it into its folder."""
    arguments = read_arguments()
    made_by = how_made(getattr(arguments, "source", None))
    facts = MAKERS[arguments.what](arguments)
    source = "the faces of a folder" if arguments.faces else "drawn faces"
    write_json(arguments.out / "measured.json", {"made_by": made_by, "from": source, **facts})
    print(f"{arguments.out}: {facts}")


if __name__ == "__main__":
    main()
