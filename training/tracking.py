"""A finished step as plain numbers, and where they are told: a line, losses.jsonl, a tracker.

`training.tracker` names a tracker that accelerate knows; TensorBoard's files are in
`<run folder>/logs`: `tensorboard --logdir checkpoints`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid

TIMESTEP_BINS = 10
TRACKED_STEPS = 10  # of which the tracker is told one: TensorBoard takes milliseconds, a step a few


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
    matrix_share: float | None = None  # model FLOPs utilisation; None: no rate is known

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

    def values(self) -> dict[str, float]:
        """The step as a tracker takes it: numbers by name, those that there are."""
        record = self.record()
        bins = record.pop("loss_by_timestep")
        names = (f"loss_by_timestep/{10 * n}-{10 * n + 10}%" for n in range(TIMESTEP_BINS))
        record |= dict(zip(names, bins, strict=True))
        if self.moved:
            record["gradient_norm"] = self.gradient_norm
        return {n: x for n, x in record.items() if x is not None and n not in ("step", "epoch")}


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


# --- the tracker ---


def tracked(
    steps: Iterable[Step], accelerator: Accelerator, name: str, done: int = 0
) -> Iterator[Step]:
    """Pass on the steps of a run; log every tenth, and each with a validation loss.

    Args:
        done: steps that the run has taken; what was logged beyond them is logged again.
    """
    with _logs_only(accelerator):
        options = {"tensorboard": {"purge_step": done + 1}}
        accelerator.init_trackers(name, init_kwargs=options)
    try:
        for step in steps:
            if step.number % TRACKED_STEPS == 0 or step.validation_loss is not None:
                with _logs_only(accelerator):
                    accelerator.log(step.values(), step=step.number)
            yield step
    finally:
        with _logs_only(accelerator):
            for tracker in accelerator.trackers:
                tracker.finish()


def log_pictures(accelerator: Accelerator, images: Tensor, step: int) -> None:
    """Log a grid of pictures (B, 3, H, W) in [0, 1] to TensorBoard."""
    with _logs_only(accelerator):
        for tracker in accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image("samples", make_grid(images, nrow=4), step)


@contextmanager
def _logs_only(accelerator: Accelerator) -> Iterator[None]:
    """Let whatever a tracker raises (a deleted folder, a full disk, a lost connection) cost its
    logs and not the run; `losses.jsonl` has the same numbers.
    """
    try:
        yield
    except Exception as error:
        accelerator.trackers = []
        print(f"nothing more is logged to the tracker: {error!r}")
