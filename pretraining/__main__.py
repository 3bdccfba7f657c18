"""Make the frozen models: `python -m pretraining autoencoder|clip|decoder [--faces FOLDER]`.

Without `--faces` it draws its own, from another seed than the demo's faces; `autoencoder` and
`clip` then write into `assets/`: that is how the demo's were made. With `--faces`, a CelebA-HQ
folder, `--out` names another folder. `decoder --from MODEL --out FOLDER` fine-tunes the decoder of
an autoencoder, whose latents stay the same.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from command_line import command
from config import ROOT
from custom_datasets.captions import describe
from files import write_json
from models.device import choose_device
from models.loading import open_model
from models.text_encoder import open_tokenizer, save_tokenizer
from pretraining import autoencoder as ae
from pretraining import clip
from pretraining.decoder_folder import make_decoder
from pretraining.faces import choose, open_images, open_splits
from pretraining.progress import watch

Maker = Callable[[argparse.Namespace], dict[str, Any]]


def make_autoencoder(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure an autoencoder."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    settings, images = ae.AutoencoderSettings(minutes=arguments.minutes), open_images(train)
    kinds = {"AutoencoderKL": AutoencoderKL}
    name = str(arguments.out.resolve())
    start = open_model(kinds, name, "autoencoder") if arguments.go_on else None
    model = watch(ae.train_autoencoder(images, settings, choose_device(), start)).model
    factor = ae.set_scaling_factor(model, images[choose(len(images), 1000)])
    facts = {"psnr_db": ae.reconstruction_psnr(model, test.images()), "scaling_factor": factor}
    save_half(model, arguments.out)
    return facts


def make_clip(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure a CLIP with its tokenizer and image processor."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    settings, images = clip.ClipSettings(minutes=arguments.minutes), open_images(train)
    name, go_on = str(arguments.out.resolve()), arguments.go_on
    anew = None if go_on else clip.train_tokenizer(corpus(), settings.max_tokens)
    tokenizer = anew or open_tokenizer(name)

    def caption(position: int, epoch: int) -> str:
        return describe(train.attributes[position], position, epoch)

    start = open_model({"clip": CLIPModel}, name, "CLIP") if go_on else None
    training = clip.train_clip(images, caption, settings, tokenizer, choose_device(), start)
    model, shown = watch(training).model, choose(len(test), 100)
    told = [describe(row, i, seed=7) for i, row in enumerate(test.attributes[shown])]
    facts = clip.retrieval_accuracy(model, tokenizer, test.images()[shown], told)
    save_half(model, arguments.out)
    save_tokenizer(tokenizer, arguments.out)
    clip.build_image_processor(train.image_size).save_pretrained(arguments.out)
    return facts


def corpus() -> list[str]:
    """Captions of random attribute vectors, so that every word of the grammar becomes a token."""
    return [describe(row, i) for i, row in enumerate(clip.random_people(20_000, 0))]


def save_half(model: torch.nn.Module, out: Path) -> None:
    """Save as float16 safetensors: half the size, and more precise than these models are."""
    model.half().save_pretrained(out, safe_serialization=True)


def read_arguments() -> argparse.Namespace:
    """The command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--faces", type=Path, help="a CelebA-HQ folder; default: drawn faces")
    shared.add_argument("--image-size", type=int, default=64, help="pixels that are encoded")
    shared.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in ("autoencoder", "clip"):
        options, out = kinds.add_parser(what, parents=[shared]), f"assets/demo_{what}"
        options.add_argument("--out", type=Path, help=f"default, of drawn faces only: {out}")
        options.set_defaults(shipped=ROOT / out)
        options.add_argument("--go-on", action="store_true", help="start from the weights in --out")
    _add_decoder(kinds.add_parser("decoder", parents=[shared]))
    arguments = parser.parse_args()
    if arguments.out is None:
        if arguments.faces:
            parser.error("--out: name a folder; assets/ holds the demo's models, of drawn faces")
        arguments.out = arguments.shipped
    return arguments


def _add_decoder(options: argparse.ArgumentParser) -> None:
    options.add_argument("--from", dest="source", required=True, help="hub id or local folder")
    options.add_argument("--out", type=Path, required=True, help="folder of what is made")
    options.add_argument("--picture-size", type=int, help="pixels drawn: as many, or twice")
    options.add_argument(
        "--sampled", type=Path, help="latents that a diffusion model drew (pretraining.latents)"
    )
    options.add_argument("--alone", action="store_true", help="save no encoder, and float16")
    options.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a setting of pretraining/decoder.py; may be given several times",
    )


def how_made(arguments: argparse.Namespace) -> str:
    """The command that makes the model, with those before it that it goes on from."""
    words = f"python -m pretraining {arguments.what} --minutes {arguments.minutes:g}"
    if arguments.what == "decoder":
        words += f" --from {arguments.source} --image-size {arguments.image_size}"
        words += f" --picture-size {arguments.picture_size}" * bool(arguments.picture_size)
        words += f" --sampled {arguments.sampled}" * bool(arguments.sampled)
        words += " --alone" * arguments.alone
        return words + "".join(f" --set {change}" for change in arguments.changes)
    if not arguments.go_on:
        return words
    before = json.loads((arguments.out / "measured.json").read_text())["made_by"]
    return f"{before}, then {words} --go-on"


@command
def main() -> None:
    """Make a model, and write what was measured of it into its folder."""
    makers: dict[str, Maker] = {"autoencoder": make_autoencoder, "clip": make_clip}
    makers["decoder"] = make_decoder
    arguments = read_arguments()
    made_by = how_made(arguments)
    facts = makers[arguments.what](arguments)
    source = "drawn faces" if arguments.faces is None else "the faces of another folder"
    write_json(arguments.out / "measured.json", {"made_by": made_by, "from": source, **facts})
    print(f"{arguments.out}: {facts}")


if __name__ == "__main__":
    main()
