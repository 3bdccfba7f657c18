"""Runs of the real loop over random latents, in a run folder that is thrown away."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import full_size
from config import Config
from custom_datasets.latent_cache import LatentSource
from models.text_encoder import TextEncoder
from models.vae_wrapper import Posterior
from training.experiment import Experiment


class RandomLatents:
    """A latent cache of random values, the same ones every time."""

    def __init__(self, count: int, channels: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.mean = torch.randn(count, channels, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.mean)

    def fetch(self, faces: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        mean = self.mean[torch.from_numpy(faces)]
        return Posterior(mean, torch.zeros_like(mean))


def timed(config: Config, **changes: Any) -> Config:
    """A config whose training saves no checkpoint and logs nowhere while it is timed.

    Args:
        changes: of `TrainingConfig`.
    """
    quiet = {"checkpoint_every_n_epochs": 10**6, "save_every_minutes": 1e6, "tracker": None}
    changes = {"num_epochs": 10**6} | quiet | changes
    return replace(config, training=replace(config.training, **changes))


@contextmanager
def experiment(
    config: Config,
    text_encoder: TextEncoder,
    faces: int | LatentSource,
    folder: Path | None = None,
    caption: Callable[[int, int], str] = full_size.caption,
) -> Iterator[Experiment]:
    """An experiment over so many made-up faces, on the device that `choose_device` names.

    Args:
        faces: their number, or given latents.
        folder: the run folder, which stays; None: one that is thrown away.
        caption: (face, wording) -> its caption.
    """
    with (
        tempfile.TemporaryDirectory() as temporary,
        Experiment(config, folder or Path(temporary)) as opened,
    ):
        shape = config.unet.latent_channels, config.unet.latent_size
        latents = RandomLatents(faces, *shape) if isinstance(faces, int) else faces
        opened.faces = opened.latents = latents
        opened.held_out_faces = None
        opened.text_encoder = text_encoder.to(opened.device)
        opened.text_fingerprint = opened.vae_fingerprint = opened.image_fingerprint = "random"
        opened.caption = caption
        yield opened
