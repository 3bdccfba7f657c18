"""The few figures that the notebooks share.

Images are (3, H, W) tensors, uint8 or float in [0, 1]; nothing here computes.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

PROMPT = {"fontsize": 7, "parse_math": False}  # a "$" in a prompt is a dollar, not mathematics


def as_array(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) uint8 or float in [0, 1] -> (H, W, 3) for matplotlib."""
    return image.detach().cpu().permute(1, 2, 0).numpy()


def show_images(
    images: Sequence[torch.Tensor],
    titles: Sequence[str] = (),
    columns: int = 8,
    title: str = "",
    width: float = 1.6,
) -> Figure:
    """A grid of images, each with its own caption above it."""
    rows = -(-len(images) // columns)
    lines = max((title_lines(text, width).count("\n") + 1 for text in titles), default=0)
    ratio = max(image.shape[-2] / image.shape[-1] for image in images)
    height = width * ratio + 0.16 * lines
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * width, rows * height + 0.3), squeeze=False
    )
    for number, axis in enumerate(axes.flat):
        axis.axis("off")
        if number < len(images):
            axis.imshow(as_array(images[number]), interpolation="bilinear")
        if number < len(titles):
            axis.set_title(title_lines(titles[number], width), **PROMPT)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    return figure


def title_lines(text: str, width: float) -> str:
    """Break a caption so that it stays above its own image."""
    return "\n".join(textwrap.wrap(text, int(15 * width)))


def show_table(
    rows: Sequence[Sequence[torch.Tensor]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    title: str = "",
    width: float = 1.3,
) -> Figure:
    """Images in rows and columns that both have names, such as prompts by guidance scales."""
    titles = [title_lines(name, width) for name in column_names]
    lines = max(title.count("\n") + 1 for title in titles)
    figure, axes = plt.subplots(
        len(rows),
        len(titles),
        figsize=(len(titles) * width + 1.2, len(rows) * width + 0.16 * lines + 0.3),
        squeeze=False,
    )
    for row, (axis_row, images) in enumerate(zip(axes, rows, strict=True)):
        for column, (axis, image) in enumerate(zip(axis_row, images, strict=True)):
            axis.imshow(as_array(image), interpolation="bilinear")
            axis.set(xticks=[], yticks=[], frame_on=False)
            if row == 0:
                axis.set_title(titles[column], **PROMPT)
        name = "\n".join(textwrap.wrap(row_names[row], 24))
        axis_row[0].set_ylabel(name, rotation=0, ha="right", va="center", **PROMPT)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    return figure


def plot_bars(values: dict[str, float], title: str, label: str) -> Figure:
    """Horizontal bars, longest first."""
    ordered = dict(sorted(values.items(), key=lambda item: item[1]))
    figure, axis = plt.subplots(figsize=(7, 0.17 * len(ordered) + 0.8))
    axis.barh(list(ordered), list(ordered.values()))
    axis.tick_params(axis="y", labelsize=7)
    axis.set(title=title, xlabel=label)
    figure.tight_layout()
    return figure


def plot_losses(
    losses: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]] = (), window: int = 20
) -> Figure:
    """The loss over the steps, smoothed, and the last tenth of it by timestep.

    Args:
        validation: lines of `validation.jsonl`, the loss of held-out faces after each epoch.
    """
    losses = [line for line in losses if line["loss"] is not None]  # skipped steps have none
    figure, (over_steps, by_timestep) = plt.subplots(1, 2, figsize=(10, 3))
    if not losses:  # a checkpoint that was copied without its logs
        figure.suptitle("no losses")
        return figure
    steps = np.array([line["step"] for line in losses])
    values = np.array([line["loss"] for line in losses])
    over_steps.plot(steps, values, alpha=0.25)
    kernel = np.ones(min(window, len(values))) / min(window, len(values))
    smoothed = np.convolve(values, kernel, mode="valid")
    over_steps.plot(steps[len(kernel) - 1 :], smoothed, label="training faces")
    if validation:
        epochs = [line["step"] for line in validation]
        means = [line["loss"] for line in validation]
        over_steps.plot(epochs, means, "o-", markersize=3, label="held-out faces, averaged weights")
        over_steps.legend(fontsize=7)
    over_steps.set(title="loss (mean squared error)", xlabel="step", ylim=(0, None))
    last = [line["loss_by_timestep"] for line in losses[-max(1, len(losses) // 10) :]]
    bins = np.array(last, dtype=float)
    means = np.ma.masked_invalid(bins).mean(axis=0).filled(0)
    by_timestep.bar(np.arange(len(means)) / len(means), means, width=0.9 / len(means), align="edge")
    if validation:
        last = np.array(validation[-1]["loss_by_timestep"], dtype=float)
        by_timestep.plot((np.arange(len(last)) + 0.45) / len(last), last, "o", color="C2")
    by_timestep.set(title="the same by timestep, at the end", xlabel="t / T (1 is pure noise)")
    figure.tight_layout()
    return figure
