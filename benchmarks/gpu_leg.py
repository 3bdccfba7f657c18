"""The training leg of `benchmarks.gpu`: some minutes of the full-size model on given latents.

`python -m benchmarks.gpu --train 7 --latents FOLDER --attributes FILE [--decoder NAME]`. FOLDER
holds `latents.npy.xz` (int8 (N, C, h, w), a latent is value / 31.75) and `indices.npy` (the
official index of each), FILE is CelebAMask-HQ's attribute annotation. Captions go through the CLIP
that ships. The results' folder gets `run/` (losses), `unet/` (averaged weights), `latents.npy` and
`captions.json` of pictures for faces that were not trained on, and with a decoder `pictures.png`.
"""

import argparse
import lzma
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.utils import save_image

from benchmarks import runs
from config import Config, get_config
from custom_datasets.captions import describe
from custom_datasets.celeba_files import ATTRIBUTES
from files import write_json
from inference.text_to_face import TextToFace
from models.text_encoder import TextEncoder
from models.vae_wrapper import Posterior, VAEWrapper
from training.experiment import Experiment
from training.loop import train

if TYPE_CHECKING:
    from benchmarks.gpu import Report

STEP_OF_INT8 = 31.75  # values a unit of a latent
PICTURES, QUICK_PICTURES, PICTURES_AT_ONCE, GRID = 400, 8, 50, 64
PICTURE_SECONDS = 90  # that sampling and writing may take
SHARE_PLANNED = 0.97  # of the minutes, so that the learning rate reaches zero within them
CAPTION_SEED = 1_000_003  # other wordings than training's
SHIPPED_CLIP = ("models.text_encoder=assets/demo_clip", "unet.text_width=128")


@dataclass(frozen=True)
class GivenLatents:
    """Encoded faces; they cannot be mirrored."""

    values: np.ndarray  # int8 (N, C, h, w)
    indices: np.ndarray  # int (N,), official

    @classmethod
    def read(cls, folder: Path) -> "GivenLatents":
        """Read `latents.npy.xz` and `indices.npy`."""
        with lzma.open(folder / "latents.npy.xz") as file:
            return cls(np.load(file), np.load(folder / "indices.npy"))

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, faces: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        mean = torch.from_numpy(self.values[faces]).float() / STEP_OF_INT8
        return Posterior(mean, torch.zeros_like(mean))


@dataclass(frozen=True)
class Leg:
    """What is trained."""

    config: Config
    latents: GivenLatents
    attributes: np.ndarray  # bool (M, 40), by official index
    seconds: float  # of training and pictures
    decoder: str | None
    pictures: int = PICTURES

    @property
    def batch(self) -> int:
        """Samples a step."""
        return self.config.training.batch_size

    def caption(self, face: int, wording: int = 0) -> str:
        """The caption of a training face."""
        index = int(self.latents.indices[face])
        return describe(self.attributes[index], index, wording, self.config.training.seed)

    def unseen_captions(self, count: int) -> list[str]:
        """Captions of faces that are not trained on."""
        others = np.setdiff1d(np.arange(len(self.attributes)), self.latents.indices)
        chosen = np.random.default_rng(0).permutation(others)[:count]
        return [describe(self.attributes[i], int(i), 0, CAPTION_SEED) for i in chosen]


def add_options(options: argparse.ArgumentParser) -> None:
    """The leg's options."""
    options.add_argument("--train", type=float, default=0, metavar="MINUTES", help="default: none")
    options.add_argument("--latents", type=Path, help="folder of the leg's latents")
    options.add_argument("--attributes", type=Path, help="CelebAMask-HQ's attribute annotation")
    options.add_argument("--decoder", help="autoencoder that decodes the leg's pictures")


def plan(arguments: argparse.Namespace, quick: Config) -> Leg | None:
    """The leg that was asked for, read before any work; `--preset` and `--set` choose the recipe.

    Raises:
        ValueError: latents or attributes are not named, or the folder of results holds a leg.
    """
    if not arguments.train:
        return None
    if (arguments.out / "run").exists():
        raise ValueError(f"{arguments.out} holds a training leg: name another folder with --out")
    if arguments.latents is None or arguments.attributes is None:
        raise ValueError("--train needs --latents FOLDER and --attributes FILE")
    latents = GivenLatents.read(arguments.latents)
    size = latents.values.shape[-1]
    recipe = ("training.batch_size=256", "training.learning_rate=4e-4", "training.warmup_steps=200")
    config = get_config(
        arguments.preset or "celeba_hq_best", (*recipe, *SHIPPED_CLIP, *arguments.changes)
    )
    if arguments.quick:
        small = replace(quick.unet, latent_channels=latents.values.shape[1], latent_size=size)
        data = replace(config.data, image_size=8 * size)
        config = replace(config, unet=small, data=data)
    config = replace(config, data=replace(config.data, flip=False))
    attributes = read_attributes(arguments.attributes)
    seconds = 60 * arguments.train + PICTURE_SECONDS
    count = QUICK_PICTURES if arguments.quick else PICTURES
    return Leg(config, latents, attributes, seconds, arguments.decoder, count)


def read_attributes(path: Path) -> np.ndarray:
    """Bool (N, 40), by official index.

    Raises:
        ValueError: it is not the official annotation.
    """
    _, names, *lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines]
    is_official = [f"{i}.jpg" for i in range(len(rows))] == [row[0] for row in rows]
    if tuple(names.split()) != tuple(ATTRIBUTES) or not is_official:
        raise ValueError(f"{path} is not CelebAMask-HQ-attribute-anno.txt as it is published")
    return np.array([row[1:] for row in rows]) == "1"


def run(report: "Report", leg: Leg, is_compiled: bool) -> None:
    """Train until the minutes are over, and leave pictures, losses and weights.

    The length is planned by the speed that was timed at the nearest batch, so that the learning
    rate ends at zero; where nothing was timed, it ends where it is when the time is over.
    """
    seconds = min(report.left(), leg.seconds) - PICTURE_SECONDS
    timed = [row for row in report.rows if row.get("way") == report.best_way() and "ms" in row]
    nearest = min(timed, key=lambda row: abs(row["batch"] - leg.batch), default={})
    images = nearest.get("images_per_second", 1000) * seconds * SHARE_PLANNED
    epochs = max(1, round(images / leg.batch / (len(leg.latents) // leg.batch)))
    config = runs.timed(leg.config, num_epochs=epochs, compile=is_compiled)
    encoder, folder = TextEncoder.from_pretrained(config.models.text_encoder), report.folder / "run"
    with runs.experiment(config, encoder, leg.latents, folder, leg.caption) as opened:
        report.add("training", partial(trained, opened, seconds, report.folder / "unet"))
        report.add("pictures", partial(pictures, opened, leg, report.folder))


def trained(opened: Experiment, seconds: float, folder: Path) -> dict[str, Any]:
    """Train to the last epoch or for so long; the averaged weights go to the folder."""
    begin, losses, run = time.perf_counter(), [], train(opened)
    for step in run:
        losses.append(step.loss)
        if step.number % 50 == 0:
            print(step.line(), flush=True)
        if time.perf_counter() - begin > seconds:
            break
    run.close()
    taken, batch = time.perf_counter() - begin, opened.config.training.batch_size
    opened.state.ema_unet.save_pretrained(folder)
    last = losses[-100:]
    return {
        "steps": step.number,
        "images": batch * step.number,
        "seconds": taken,
        "images_per_second": batch * len(losses) / taken,
        "loss": sum(last) / len(last),
        "learning_rate": step.learning_rate,
        "is_finished": step.epoch == opened.config.training.num_epochs,
    }


def pictures(opened: Experiment, leg: Leg, folder: Path) -> dict[str, Any]:
    """Latents float16 (N, C, h, w) of the averaged weights, decoded where a decoder is named."""
    captions = leg.unseen_captions(leg.pictures)
    vae = VAEWrapper.from_pretrained(leg.decoder).to(opened.device) if leg.decoder else None
    model = TextToFace(
        leg.config, opened.state.ema_unet, opened.text_encoder, vae, opened.precision
    )
    how, parts = leg.config.sampling, []
    for start in range(0, len(captions), PICTURES_AT_ONCE):
        prompts = captions[start : start + PICTURES_AT_ONCE]
        seeds = range(start, start + len(prompts))
        predict = model.predictor(prompts, how.guidance_scale)
        *_, latents = model.trajectory(predict, seeds, how.sampler, how.steps)
        parts.append(latents.cpu())
    latents = torch.cat(parts)
    np.save(folder / "latents.npy", latents.numpy().astype(np.float16))
    write_json(folder / "captions.json", captions)
    if vae:
        save_image(model.decode(latents[:GRID].to(opened.device)), folder / "pictures.png")
    mean, std = float(latents.mean()), float(latents.std())
    return {"count": len(latents), "mean": mean, "std": std, "is_decoded": vae is not None}
