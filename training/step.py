"""Finished steps and their measurements, read from the device a block at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

TIMESTEP_BINS = 10


@dataclass(frozen=True)
class Measured:
    """Measurements of one step, over all processes."""

    loss: float  # mean squared error, not weighted
    loss_by_timestep: tuple[float | None, ...]  # in ten equal bins of t; None: no sample in it
    gradient_norm: float  # before clipping
    moved: bool  # False: loss or gradient was not finite, and the weights did not change


@dataclass
class Step:
    """One finished optimiser step. Its measurements are read from the device on first access."""

    number: int  # counts from 1 over the whole run
    epoch: int  # finished epochs after this step
    learning_rate: float
    ledger: "Ledger" = field(repr=False)
    images_per_second: float = 0.0  # over the block of steps that was read last
    seconds_left: float = 0.0  # at this rate
    known: Measured | None = None  # what was read
    validation_loss: float | None = None  # of held-out faces, after the last step of an epoch

    @property
    def is_read(self) -> bool:
        """Whether the block of this step was read, so that its loss costs no wait."""
        return self.known is not None

    @property
    def measured(self) -> Measured:
        """Waits for the device unless the block of this step was read already."""
        if self.known is None:
            self.known = self.ledger.of(self.number)
        return self.known

    @property
    def loss(self) -> float:
        """Mean squared error of the batch, not weighted."""
        return self.measured.loss

    @property
    def skipped(self) -> bool:
        """Whether the step left the weights unchanged."""
        return not self.measured.moved

    def line(self) -> str:
        """The step as one line of a log."""
        left = str(timedelta(seconds=round(self.seconds_left)))
        return (
            f"step {self.number:6d} | epoch {self.epoch:3d} | loss {self.loss:.4f} | "
            f"lr {self.learning_rate:.1e} | {self.images_per_second:.0f} images/s | {left} left"
        )

    def record(self) -> dict[str, Any]:
        """The step as a line of `losses.jsonl`; a skipped one has no loss."""
        measured = self.measured
        bins = [None if x is None else round(x, 6) for x in measured.loss_by_timestep]
        line = {
            "step": self.number,
            "epoch": self.epoch,
            "loss": round(measured.loss, 6) if measured.moved else None,
            "loss_by_timestep": bins if measured.moved else [None] * TIMESTEP_BINS,
            "learning_rate": self.learning_rate,
            "images_per_second": round(self.images_per_second, 2),
        }
        if self.validation_loss is not None:
            line["validation_loss"] = self.validation_loss
        return line


class Ledger:
    """Collects the measurements of steps on the device; `read` fetches a block of them at once.

    A row holds the sum and the number of losses in each bin of t, and the gradient's norm.

    Args:
        reduce: sums a tensor over all processes, which then read together; None: there is one.
    """

    def __init__(
        self,
        num_train_timesteps: int,
        processes: int = 1,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.num_train_timesteps = num_train_timesteps
        self.processes, self.reduce = processes, reduce
        self.rows: dict[int, Tensor] = {}  # by the number of the step; on the device
        self.last_read: dict[int, Measured] = {}

    def note(self, number: int, losses: Tensor, timesteps: Tensor, norm: Tensor) -> None:
        """Keep the measurements of a step: losses (b,), timesteps (b,), the gradient's norm ()."""
        bins = timesteps * TIMESTEP_BINS // self.num_train_timesteps
        sums = torch.zeros(2 * TIMESTEP_BINS, device=losses.device)
        sums.index_add_(0, bins, losses)
        sums.index_add_(0, bins + TIMESTEP_BINS, torch.ones_like(losses))
        # All processes have the norm of the same reduced gradient.
        self.rows[number] = torch.cat([sums, norm.float().view(1) / self.processes])

    def read(self, flags: Sequence[float] = ()) -> list[float]:
        """Fetch all rows that were not read yet; the only place where a step waits for the device.

        Args:
            flags: numbers that are summed over all processes in the same transfer, and returned.
        """
        numbers, rows = list(self.rows), list(self.rows.values())
        self.rows = {}
        device = rows[0].device if rows else torch.device("cpu")
        packed = torch.cat([torch.tensor(list(flags), device=device), *rows])
        if self.reduce is not None:
            packed = self.reduce(packed)
        values = packed.tolist()
        shared, values = values[: len(flags)], values[len(flags) :]
        width = 2 * TIMESTEP_BINS + 1
        blocks = [values[i : i + width] for i in range(0, len(values), width)]
        self.last_read = {n: _measured(row) for n, row in zip(numbers, blocks, strict=True)}
        return shared

    def of(self, number: int) -> Measured:
        """The measurements of a step of the last block; reads that block if necessary.

        Raises:
            RuntimeError: it was not read, and other processes would have to read with this one.
        """
        if number in self.rows:
            if self.reduce is not None:
                raise RuntimeError(f"step {number} is read with the block of training.log_every")
            self.read()
        return self.last_read[number]


def _measured(row: Sequence[float]) -> Measured:
    sums, counts, norm = row[:TIMESTEP_BINS], row[TIMESTEP_BINS:-1], row[-1]
    bins = tuple(s / c if c else None for s, c in zip(sums, counts, strict=True))
    is_finite = abs(norm) < float("inf")  # False for NaN too
    return Measured(sum(sums) / sum(counts), bins, norm, is_finite)


class Stopwatch:
    """Seconds a step since the last block; the caller's time between steps does not count."""

    def __init__(self) -> None:
        self.start, self.seconds, self.steps = time.perf_counter(), 0.0, 0

    def pause(self) -> None:
        """A step ends."""
        self.seconds += time.perf_counter() - self.start
        self.steps += 1

    def resume(self) -> None:
        """A step begins."""
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds a step since the last lap, once the device has finished them."""
        seconds = self.seconds / self.steps
        self.seconds, self.steps = 0.0, 0
        return seconds
