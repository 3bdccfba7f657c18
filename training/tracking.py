"""Logs of a run for TensorBoard, or any other tracker that accelerate knows by name.

`training.tracker` names it; TensorBoard's files are in `<run folder>/logs`: `tensorboard --logdir
checkpoints`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torchvision.utils import make_grid

from config import nearest
from training.step import Step


def require_tracker(name: str | None) -> None:
    """Refuse a tracker that is unknown, or not installed: accelerate then logs nothing.

    Raises:
        ValueError: names the setting and the remedy.
    """
    known, installed = sorted(LOGGER_TYPE_TO_CLASS), map(str, get_available_trackers())
    if name is None or name in installed:
        return
    if name in known:
        raise ValueError(
            f"training.tracker: {name} is not installed (or too old): install it with pip, or use "
            "another, or None"
        )
    raise ValueError(
        f"training.tracker: {name!r} is unknown{nearest(name, known)}; choose from {known}, or None"
    )


def tracked(
    steps: Iterable[Step], accelerator: Accelerator, name: str, done: int = 0
) -> Iterator[Step]:
    """Pass on the steps of a run and log each of them.

    Args:
        done: steps that the run has taken; what was logged beyond them is logged again.
    """
    with _logs_only(accelerator):
        options = {"tensorboard": {"purge_step": done + 1}}
        accelerator.init_trackers(name, init_kwargs=options)
    try:
        for step in steps:
            with _logs_only(accelerator):
                accelerator.log(values_of(step), step=step.number)
            yield step
    finally:
        with _logs_only(accelerator):
            for tracker in accelerator.trackers:
                tracker.finish()


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


def values_of(step: Step) -> dict[str, float]:
    """The logged values of a step; one that moved nothing has no loss."""
    values = {"learning_rate": step.learning_rate, "images_per_second": step.images_per_second}
    if step.validation_loss is not None:
        values["validation_loss"] = step.validation_loss
    if not step.moved:
        return values
    bins = {
        f"loss_by_timestep/{10 * number}-{10 * number + 10}%": loss
        for number, loss in enumerate(step.loss_by_timestep)
        if loss is not None
    }
    return values | {"loss": step.loss, "gradient_norm": step.gradient_norm} | bins


def log_pictures(accelerator: Accelerator, images: torch.Tensor, step: int) -> None:
    """Log a grid of pictures (B, 3, H, W) in [0, 1] with the trackers that take images."""
    grid = (make_grid(images, nrow=4).permute(1, 2, 0) * 255).byte().numpy()[None]  # (1, H, W, 3)
    with _logs_only(accelerator):
        for tracker in accelerator.trackers:
            # TensorBoard takes channels first unless told; the others take them last only.
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({"samples": grid}, step, **options)
