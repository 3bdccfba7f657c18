"""Make the small frozen models: `python -m pretraining autoencoder|clip [--faces FOLDER] [--out
FOLDER]`.

Without `--faces` it draws its own, from another seed than the demo's faces, and writes into
`assets/`: that is how the demo's autoencoder and CLIP were made. With `--faces` it makes them from
any CelebA-HQ folder.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPModel

from config import ROOT
from custom_datasets.captions import describe
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces
from models.loading import open_model
from models.text_encoder import open_tokenizer, save_tokenizer
from pretraining import autoencoder as ae
from pretraining import clip

DRAWN_COUNTS = (12_000, 100, 500)
DRAWN_SEED = 1


def watch(training: Iterator[tuple[torch.nn.Module, int, float, float]]) -> torch.nn.Module:
    """Run a training to its end, saying now and then where it stands; returns the model."""
    model = None
    for state in training:
        model, step, loss, done = state
        if step % 50 == 0:
            print(f"step {step:6d} | loss {loss:.4f} | {done:5.1%}", flush=True)
    return model.eval()


def make_autoencoder(
    train: CelebAHQ, test: CelebAHQ, minutes: float, out: Path, go_on: bool
) -> dict[str, float]:
    """Train, save and measure an autoencoder."""
    settings = ae.AutoencoderSettings(minutes=minutes)
    images = train.all_images()
    kinds = {"AutoencoderKL": AutoencoderKL}
    start = open_model(kinds, str(out.resolve()), "autoencoder") if go_on else None
    model = watch(ae.train_autoencoder(images, settings, pick_device(), start))
    factor = ae.set_scaling_factor(model, images[:1000])
    facts = {"psnr_db": ae.reconstruction_psnr(model, test.all_images()), "scaling_factor": factor}
    save_half(model, out)
    return facts


def make_clip(
    train: CelebAHQ, test: CelebAHQ, minutes: float, out: Path, go_on: bool
) -> dict[str, float]:
    """Train, save and measure a CLIP with its tokenizer and image processor."""
    settings = clip.ClipSettings(minutes=minutes)
    images = train.all_images()
    anew = None if go_on else clip.train_tokenizer(corpus(), settings.max_tokens)
    tokenizer = anew or open_tokenizer(str(out.resolve()))

    def caption(position: int, epoch: int) -> str:
        return describe(train.attributes[position], position, epoch)

    start = open_model({"clip": CLIPModel}, str(out.resolve()), "CLIP") if go_on else None
    model = watch(clip.train_clip(images, caption, settings, tokenizer, pick_device(), start))
    shown = [describe(row, i, seed=7) for i, row in enumerate(test.attributes[:100])]
    facts = clip.retrieval_accuracy(model, tokenizer, test.all_images()[:100], shown)
    save_half(model, out)
    save_tokenizer(tokenizer, out)
    clip.build_image_processor(train.image_size).save_pretrained(out)
    return facts


def corpus() -> list[str]:
    """Captions of random attribute vectors, so that every word of the grammar becomes a token."""
    return [describe(row, i) for i, row in enumerate(clip.random_people(20_000, 0))]


def save_half(model: torch.nn.Module, out: Path) -> None:
    """Save as float16 safetensors: half the size, and more precise than these models are."""
    model.half().save_pretrained(out, safe_serialization=True)


def pick_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    """Parse the command line, train, and write the measurements into the folder of the weights."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("what", choices=("autoencoder", "clip"))
    parser.add_argument(
        "--faces", type=Path, help="a CelebA-HQ folder; default: faces drawn for it"
    )
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument(
        "--out", type=Path, help="default: assets/demo_autoencoder or assets/demo_clip"
    )
    parser.add_argument("--go-on", action="store_true", help="start from the weights in --out")
    arguments = parser.parse_args()
    drawn = ROOT / "data" / "drawn_faces_for_pretraining"
    folder = arguments.faces or write_drawn_faces(drawn, DRAWN_COUNTS, size=128, seed=DRAWN_SEED)
    train = CelebAHQ(folder, "train", arguments.image_size)
    test = CelebAHQ(folder, "test", arguments.image_size)
    out = arguments.out or ROOT / "assets" / f"demo_{arguments.what}"
    make = {"autoencoder": make_autoencoder, "clip": make_clip}[arguments.what]
    before = json.loads((out / "measured.json").read_text())["made_by"] if arguments.go_on else ""
    facts = make(train, test, arguments.minutes, out, arguments.go_on)
    made_by = f"python -m pretraining {arguments.what} --minutes {arguments.minutes:g}"
    made_by = f"{before}, then {made_by} --go-on" if arguments.go_on else made_by
    source = "drawn faces" if arguments.faces is None else "the faces of another folder"
    (out / "measured.json").write_text(
        json.dumps({"made_by": made_by, "from": source, **facts}, indent=2) + "\n"
    )
    print(f"{out}: {facts}")


if __name__ == "__main__":
    main()
