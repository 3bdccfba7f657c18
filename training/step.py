"""The record of one finished step, and the time it took."""

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

TIMESTEP_BINS = 10


@dataclass(frozen=True)
class Step:
    """One finished optimiser step."""

    number: int  # counts from 1 over the whole run
    epoch: int  # finished epochs after this step
    loss: float  # unweighted mean squared error, of the main process's share of the batch
    loss_by_timestep: tuple[float | None, ...]  # in ten equal bins of t; None: no sample fell in it
    learning_rate: float
    images_per_second: float
    seconds_left: float
    skipped: bool = False  # loss or gradient was not finite and the weights were left alone

    def line(self) -> str:
        """The step as one line of a log."""
        left = str(timedelta(seconds=round(self.seconds_left)))
        return (
            f"step {self.number:6d} | epoch {self.epoch:3d} | loss {self.loss:.4f} | "
            f"lr {self.learning_rate:.1e} | {self.images_per_second:.0f} images/s | {left} left"
        )

    def record(self) -> dict[str, Any]:
        """The step as a line of `losses.jsonl`; a skipped one has no loss."""
        bins = [None if x is None or self.skipped else round(x, 6) for x in self.loss_by_timestep]
        return {
            "step": self.number,
            "epoch": self.epoch,
            "loss": None if self.skipped else round(self.loss, 6),
            "loss_by_timestep": bins,
            "learning_rate": self.learning_rate,
            "images_per_second": round(self.images_per_second, 2),
        }


def loss_by_bin(
    losses: torch.Tensor, timesteps: torch.Tensor, count: int
) -> tuple[float | None, ...]:
    """Mean of the losses (B,) in equal bins of t; None for a bin without a sample."""
    bins = (timesteps * TIMESTEP_BINS // count).cpu()
    sums = torch.zeros(TIMESTEP_BINS).index_add_(0, bins, losses)
    counts = bins.bincount(minlength=TIMESTEP_BINS)
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return tuple(total / number if number else None for total, number in pairs)


class Stopwatch:
    """Seconds a step, smoothed over about the last twenty; the caller's time between steps does not
    count.
    """

    def __init__(self) -> None:
        self.start, self.smoothed = time.perf_counter(), None

    def resume(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        seconds = time.perf_counter() - self.start
        self.smoothed = seconds if self.smoothed is None else 0.9 * self.smoothed + 0.1 * seconds
        return self.smoothed
