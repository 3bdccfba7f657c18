"""Keeps the loss curves of runs in docs/curves/, and draws them: `python -m docs.curves <run> ...`.

A line holds one epoch: images so far, the mean of the training loss, and the loss of held-out faces
under the averaged weights. A curve of the same preset tells a reader what to expect at which image.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from config import ROOT
from files import write_text
from training.run_folder import read_losses

FOLDER = ROOT / "docs" / "curves"


def epochs(run: Path) -> list[dict[str, Any]]:
    """One line an epoch from the losses of a run folder."""
    batch_size = json.loads((run / "config.json").read_text())["config"]["training"]["batch_size"]
    lines, found, losses = read_losses(run), [], []
    for line in lines:
        losses += [line["loss"]] if line["loss"] is not None else []
        if "validation_loss" in line:
            found.append(
                {
                    "epoch": line["epoch"],
                    "images": line["step"] * batch_size,
                    "loss": round(sum(losses) / len(losses), 5),
                    "held_out_loss": round(line["validation_loss"], 5),
                    "learning_rate": line["learning_rate"],
                }
            )
            losses = []
    if not found:
        raise ValueError(f"{run} measured no loss of held-out faces")
    return found


def plot() -> None:
    """Draw all curves that are kept, side by side, since losses of two presets do not compare."""
    files = sorted(FOLDER.glob("*.jsonl"))
    figure, axes = plt.subplots(1, len(files), figsize=(5 * len(files), 3.4), squeeze=False)
    for axis, file in zip(axes[0], files, strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        images = [line["images"] / 1000 for line in lines]
        axis.plot(images, [line["loss"] for line in lines], label="training")
        axis.plot(images, [line["held_out_loss"] for line in lines], label="held-out, averaged")
        axis.set(title=file.stem, xlabel="thousand images", ylabel="mean squared error")
        axis.legend()
    figure.tight_layout()
    figure.savefig(FOLDER / "curves.png", dpi=100)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="*", type=Path, help="run folders whose curves are kept")
    for run in options.parse_args().runs:
        name = json.loads((run / "config.json").read_text())["config"]["name"]
        lines = "".join(json.dumps(line) + "\n" for line in epochs(run))
        write_text(FOLDER / f"{name}.jsonl", lines)
    plot()
