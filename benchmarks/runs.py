"""Runs of the real loop over given or random latents, in a run folder that is thrown away."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import full_size
from config import Config
from models.text_encoder import TextEncoder
from models.vae_wrapper import Posterior
from training.checkpoints import Fingerprint
from training.experiment import Experiment


@dataclass(frozen=True)
class GivenLatents:
    """A latent cache in memory; its faces cannot be mirrored."""

    values: np.ndarray  # (N, C, h, w)
    unit: float = 1.0  # of a latent, in values

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, faces: np.ndarray, flipped: np.ndarray) -> Posterior:
        """See `LatentSource.fetch`."""
        mean = torch.from_numpy(self.values[faces]).float() / self.unit
        return Posterior(mean, torch.zeros_like(mean))


def random_latents(config: Config, count: int) -> GivenLatents:
    """Random values of a UNet's size, the same ones every time."""
    size = config.unet.latent_size
    shape = (count, config.unet.latent_channels, size, size)
    return GivenLatents(np.random.default_rng(0).standard_normal(shape, np.float32))


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
    faces: int | GivenLatents,
    folder: Path | None = None,
    caption: Callable[[int, int], str] = full_size.caption,
) -> Iterator[Experiment]:
    """An experiment over made-up faces, on the device that `choose_device` names.

    Args:
        faces: their latents, or the number of random ones.
        folder: the run folder, which stays; None: one that is thrown away.
        caption: (face, wording) -> its caption.
    """
    latents = random_latents(config, faces) if isinstance(faces, int) else faces
    with (
        tempfile.TemporaryDirectory() as temporary,
        Experiment(config, folder or Path(temporary)) as opened,
    ):
        opened.faces = opened.latents = latents
        opened.held_out_faces = None
        opened.text_encoder = text_encoder.to(opened.device)
        opened.fingerprint = Fingerprint(len(latents), "random")
        opened.caption = caption
        yield opened
