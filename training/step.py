"""A finished step and its measurements, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

TIMESTEP_BINS = 10


@dataclass(frozen=True)
class Step:
    """One finished optimiser step, measured over all processes."""

    number: int  # counts from 1 over the whole run
    epoch: int  # finished epochs after this step
    loss: float  # mean squared error, not weighted
    loss_by_timestep: tuple[float | None, ...]  # in ten equal bins of t; None: no sample in it
    gradient_norm: float  # before clipping
    learning_rate: float
    # False: loss or gradient was not finite, and neither weights nor average changed.
    moved: bool = True
    validation_loss: float | None = None  # of held-out faces, after the last step of an epoch
    # Of all the time that passes: waiting for data, validation and the caller's pauses included.
    seconds: float = 0.0  # a step, mean over the last 50
    images_per_second: float = 0.0
    seconds_left: float = 0.0  # at this rate
    memory: float = 0.0  # GB, the most so far
    matrix_share: float | None = None  # of the device's matrix rate; None: it is not known

    def line(self) -> str:
        """The step as one line of a log."""
        share = "" if self.matrix_share is None else f"{self.matrix_share:.0%} of matrix rate | "
        return (
            f"step {self.number:6d} | epoch {self.epoch:3d} | loss {self.loss:.4f} | "
            f"lr {self.learning_rate:.1e} | {1000 * self.seconds:.1f} ms | "
            f"{self.images_per_second:.1f} images/s | {self.memory:.1f} GB | {share}"
            f"{timedelta(seconds=round(self.seconds_left))} left"
        )

    def record(self) -> dict[str, Any]:
        """The step as a line of `losses.jsonl`; one that moved nothing has no loss."""
        bins = [None if x is None else round(x, 6) for x in self.loss_by_timestep]
        line = {
            "step": self.number,
            "epoch": self.epoch,
            "loss": round(self.loss, 6) if self.moved else None,
            "loss_by_timestep": bins if self.moved else [None] * TIMESTEP_BINS,
            "learning_rate": self.learning_rate,
            "images_per_second": round(self.images_per_second, 2),
        }
        if self.validation_loss is not None:
            line["validation_loss"] = self.validation_loss
        return line


def measure(losses: Tensor, timesteps: Tensor, num_train_timesteps: int, norm: Tensor) -> Tensor:
    """Losses (b,) summed and counted by bins of their timesteps (b,), and the norm: (21,)."""
    bins = timesteps * TIMESTEP_BINS // num_train_timesteps
    sums = torch.zeros(2 * TIMESTEP_BINS, device=losses.device)
    sums.index_add_(0, bins, losses)
    sums.index_add_(0, bins + TIMESTEP_BINS, torch.ones_like(losses))
    return torch.cat([sums, norm.float().view(1)])


def measured(row: Sequence[float]) -> dict[str, Any]:
    """The fields of a `Step` in the values of `measure`, summed over processes but for the norm."""
    sums, counts, norm = row[:TIMESTEP_BINS], row[TIMESTEP_BINS : 2 * TIMESTEP_BINS], row[-1]
    return {
        "loss": sum(sums) / sum(counts),
        "loss_by_timestep": tuple(s / c if c else None for s, c in zip(sums, counts, strict=True)),
        "gradient_norm": norm,
        "moved": abs(norm) < float("inf"),  # False for NaN too
    }
