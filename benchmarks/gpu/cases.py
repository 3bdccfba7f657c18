"""What is measured: the specified experiment, or a small one that a CPU finishes in minutes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from diffusers import AutoencoderKL

from benchmarks import full_size
from config import Config, celeba_hq, demo
from models.text_encoder import TextEncoder
from models.vae_wrapper import VAEWrapper


@dataclass(frozen=True)
class Case:
    """Models, and how much of each thing is done."""

    config: Config
    new_text_encoder: Callable[[], TextEncoder]
    new_autoencoder: Callable[[], AutoencoderKL]
    batches: tuple[int, ...]  # of training
    micro_batch: int
    warm_up: int  # steps before the watch starts
    steps: int  # that are timed; a multiple of the steps between two reads
    images: int  # encoded or decoded at once
    pictures: tuple[int, ...]  # sampled at once
    sampling_steps: int
    matrix_size: int  # of the products that give the card's own rate

    @functools.cached_property
    def text_encoder(self) -> TextEncoder:
        """One for all rows that do not change it."""
        return self.new_text_encoder()


FULL = Case(
    celeba_hq(),
    full_size.text_encoder,
    full_size.autoencoder,
    batches=(32, 64, 128),
    micro_batch=8,
    warm_up=10,
    steps=20,
    images=16,
    pictures=(1, 16),
    sampling_steps=50,
    matrix_size=8192,
)
QUICK = Case(
    demo(),
    lambda: TextEncoder.from_pretrained(demo().models.text_encoder),
    lambda: VAEWrapper.from_pretrained(demo().models.autoencoder).autoencoder,
    batches=(4, 8),
    micro_batch=2,
    warm_up=2,
    steps=10,
    images=8,
    pictures=(1, 4),
    sampling_steps=4,
    matrix_size=512,
)
