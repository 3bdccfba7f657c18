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
from typing import Any

import numpy as np
import torch
from torchvision.utils import save_image

from benchmarks import runs
from benchmarks.report import Report
from config import Config, get_config
from custom_datasets.captions import describe
from custom_datasets.celeba_files import read_attributes
from files import write_json
from inference.text_to_face import TextToFace
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper
from pretraining.common import sample_latents
from training.experiment import Experiment
from training.loop import train

STEP_OF_INT8 = 31.75  # values a unit of a latent
PICTURES, QUICK_PICTURES, GRID = 400, 8, 64
PICTURE_SECONDS = 90  # that sampling and writing may take
SHARE_PLANNED = 0.97  # of the minutes, so that the learning rate reaches zero within them
CAPTION_SEED = 1_000_003  # other wordings than training's
RECIPE = (
    *("training.batch_size=256", "training.learning_rate=4e-4", "training.warmup_steps=200"),
    *("models.text_encoder=assets/demo_clip", "unet.text_width=128", "data.flip=false"),
)


@dataclass(frozen=True)
class Leg:
    """What is trained."""

    config: Config
    latents: runs.GivenLatents
    indices: np.ndarray  # int (N,), official
    attributes: np.ndarray  # bool (M, 40), by official index
    seconds: float  # of training and pictures
    decoder: VAEWrapper | None
    pictures: int = PICTURES

    def caption(self, face: int, wording: int = 0) -> str:
        """The caption of a training face."""
        index = int(self.indices[face])
        return describe(self.attributes[index], index, wording, self.config.training.seed)

    def unseen_captions(self) -> list[str]:
        """Captions of faces that are not trained on, one a picture."""
        others = np.setdiff1d(np.arange(len(self.attributes)), self.indices)
        chosen = np.random.default_rng(0).permutation(others)[: self.pictures]
        return [describe(self.attributes[i], int(i), 0, CAPTION_SEED) for i in chosen]


def plan(arguments: argparse.Namespace, quick: Config) -> Leg:
    """The leg that was asked for, read before any work; `--preset` and `--set` choose the recipe.

    Args:
        quick: gives the UNet of a rehearsal.
    """
    latents, indices = read_latents(arguments.latents)
    config = get_config(arguments.preset, (*RECIPE, *arguments.changes))
    if arguments.quick:
        channels, size = latents.values.shape[1:3]
        unet = replace(quick.unet, latent_channels=channels, latent_size=size)
        config = replace(config, unet=unet, data=replace(config.data, image_size=8 * size))
    _, attributes = read_attributes(arguments.attributes)
    seconds = 60 * arguments.train + PICTURE_SECONDS
    count = QUICK_PICTURES if arguments.quick else PICTURES
    decoder = arguments.decoder and VAEWrapper.from_pretrained(arguments.decoder)
    return Leg(config, latents, indices, attributes, seconds, decoder, count)


def read_latents(folder: Path) -> tuple[runs.GivenLatents, np.ndarray]:
    """The latents, and the official index of each."""
    with lzma.open(folder / "latents.npy.xz") as file:
        return runs.GivenLatents(np.load(file), STEP_OF_INT8), np.load(folder / "indices.npy")


def run(report: Report, leg: Leg, is_compiled: bool) -> None:
    """Train until the minutes are over, and leave pictures, losses and weights.

    The length is planned by the speed that was timed at the nearest batch, so that the learning
    rate ends at zero; where nothing was timed, it ends where it is when the time is over.
    """
    seconds = min(report.left(), leg.seconds) - PICTURE_SECONDS
    batch = leg.config.training.batch_size
    timed = [row for row in report.rows if row.get("way") == report.best_way() and "ms" in row]
    nearest = min(timed, key=lambda row: abs(row["batch"] - batch), default={})
    images = nearest.get("images_per_second", 1000) * seconds * SHARE_PLANNED
    epochs = max(1, round(images / batch / (len(leg.latents) // batch)))
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
    return {
        "steps": step.number,
        "images": batch * step.number,
        "seconds": taken,
        "images_per_second": batch * len(losses) / taken,
        "loss": float(np.mean(losses[-100:])),
        "learning_rate": step.learning_rate,
        "is_finished": step.epoch == opened.config.training.num_epochs,
    }


def pictures(opened: Experiment, leg: Leg, folder: Path) -> dict[str, Any]:
    """Latents float16 (N, C, h, w) of the averaged weights, decoded where a decoder is named."""
    captions = leg.unseen_captions()
    vae = leg.decoder and leg.decoder.to(opened.device)
    model = TextToFace(
        leg.config, opened.state.ema_unet, opened.text_encoder, vae, opened.precision
    )
    sampled = sample_latents(model, captions)
    np.save(folder / "latents.npy", sampled)
    write_json(folder / "captions.json", captions)
    latents = torch.from_numpy(sampled).float()
    if vae:
        save_image(model.decode(latents[:GRID].to(opened.device)), folder / "pictures.png")
    mean, std = float(latents.mean()), float(latents.std())
    return {"count": len(latents), "mean": mean, "std": std, "is_decoded": vae is not None}
