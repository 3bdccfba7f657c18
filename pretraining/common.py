"""What the trainings of frozen models share: faces and latents, the time, and what they lost.

Shapes: N faces, S pixels along a side.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from config import ROOT
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from custom_datasets.drawn_faces import write_drawn_faces
from inference.text_to_face import TextToFace
from models.device import autocast, choose_precision, freed_memory_kept, unscaled_precision
from models.vae_wrapper import VAEWrapper

DRAWN_COUNTS = (12_000, 100, 500)
DRAWN_SEED = 1  # another than the demo's
MEASURED = 1000  # held-out faces at most
BATCH = 16  # faces at a time where none is trained
LATENTS_AT_ONCE = 40
WARM_UP = 100  # steps
REPORT_EVERY = 50  # steps


def open_splits(folder: Path | None, image_size: int) -> tuple[CelebAHQ, CelebAHQ]:
    """The train and the test faces of a folder; None: drawn ones, at 128 px."""
    if folder is None:
        folder = ROOT / "data" / "drawn_faces_for_pretraining"
        write_drawn_faces(folder, DRAWN_COUNTS, size=128, seed=DRAWN_SEED)
    return CelebAHQ(folder, "train", image_size), CelebAHQ(folder, "test", image_size)


def choose(count: int, max_count: int) -> np.ndarray:
    """Up to `max_count` of the numbers below `count`, int (n,), in a random order, always the same.

    The first faces of a folder would be another population: copies of CelebA-HQ may be sorted.
    """
    return np.random.default_rng(0).permutation(count)[:max_count]


def sample_latents(model: TextToFace, captions: list[str]) -> np.ndarray:
    """Latents of captions with the run's own settings, float16 (N, C, h, w); the seed of caption i
    is i.
    """
    sampled = []
    with freed_memory_kept(model.device):
        for start in tqdm(range(0, len(captions), LATENTS_AT_ONCE), desc="latents"):
            some = captions[start : start + LATENTS_AT_ONCE]
            seeds = range(start, start + len(some))
            sampled.append(model.sample_latents(some, seeds, model.config.sampling).half().cpu())
    return torch.cat(sampled).numpy()


# --- training for a given time ---


def steps_for(minutes: float) -> Iterator[tuple[int, float]]:
    """Steps until the time is over: (step from 0, share of the time that has passed)."""
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        yield step, done
        step += 1


def learning_rate_at(peak: float, step: int, done: float) -> float:
    """Linear warm-up by steps, and a cosine to zero over the time."""
    return peak * min(0.5 * (1 + math.cos(math.pi * min(1.0, done))), (step + 1) / WARM_UP)


def descend(
    loss: Callable[[int], Tensor],
    optimizer: torch.optim.Optimizer,
    peak: float,
    minutes: float,
    device: torch.device,
) -> None:
    """Step down a loss, (step from 0) -> scalar, for so many minutes, under autocast."""
    precision = unscaled_precision(device)
    with freed_memory_kept(device):
        for step, done in steps_for(minutes):
            optimizer.param_groups[0]["lr"] = learning_rate_at(peak, step, done)
            with autocast(precision, device):
                value = loss(step)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            report(step, done, {"loss": value})


def report(step: int, done: float, losses: Mapping[str, Tensor]) -> None:
    """Print now and then where a training stands."""
    if step % REPORT_EVERY == 0:
        values = " | ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
        print(f"step {step:6d} | {values} | {done:5.1%}", flush=True)


# --- what an autoencoder loses ---


@torch.no_grad()
def measure(vae: VAEWrapper, images: Tensor, pictures: Tensor) -> dict[str, float]:
    """Compare reconstructions with real faces, in sampling's precision.

    Args:
        images: what is encoded, uint8 (N, 3, S, S).
        pictures: what should come out, uint8 (N, 3, H, H); reconstructions that are smaller are
            enlarged (bicubic).

    Returns:
        PSNR in dB over all images, and the ratio of `detail_energy`, decoded to real: 1 is as sharp
        as real faces, less is blurred, more is grainy.
    """
    device = next(vae.parameters()).device
    precision, sums = choose_precision("auto", device), torch.zeros(3, dtype=torch.float64)
    for some, real in zip(images.split(BATCH), pictures.split(BATCH), strict=True):
        real = real.to(device) / 255
        with autocast(precision, device):
            decoded = vae.decode(vae.encode(to_model_range(some.to(device))).mean)
        if decoded.shape != real.shape:
            size = real.shape[-2:]
            decoded = F.interpolate(decoded, size, mode="bicubic", antialias=True).clamp(0, 1)
        values = ((decoded - real).square(), detail_energy(decoded), detail_energy(real))
        sums += len(real) * torch.stack([value.mean().double().cpu() for value in values])
    error, decoded_detail, real_detail = (sums / len(images)).tolist()
    return {"psnr_db": -10 * math.log10(error), "detail_ratio": decoded_detail / real_detail}


def detail_energy(images: Tensor) -> Tensor:
    """Mean square of what each image (B, C, H, W) loses when it is halved, (B,): detail of one or
    two pixels, the finest band of a Laplacian pyramid (Burt & Adelson 1983).
    """
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    return (images - coarse).square().mean(dim=(1, 2, 3))
