"""A run that is killed and started again, beside runs that nobody disturbs.

`python -m benchmarks.gpu.resume FOLDER` trains a small run to its end, and continues where it
stopped.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks import runs
from config import ROOT, Config, demo, smoke
from models.text_encoder import TextEncoder
from training import checkpoints, run_folder
from training.loop import train

FACES, BATCH, EPOCHS = 80, 8, 4  # ten steps an epoch, a checkpoint at the end of each
KILLED_AFTER = 25  # steps: between two checkpoints
# Some kernels of a GPU add up in any order, so that no two runs are quite the same. Without the
# optimiser's moments, or with another batch, losses differ by some 1e-2.
TOLERANCE = 1e-3


def config() -> Config:
    """A run of 40 steps."""
    changes = {"num_epochs": EPOCHS, "batch_size": BATCH, "tracker": None, "compile": False}
    training = replace(smoke().training, checkpoint_every_n_epochs=1, **changes)
    return replace(smoke(), name="resume", training=training)


def finish(folder: Path) -> None:
    """Train from the newest checkpoint to the end; prints the number of each step."""
    text_encoder = TextEncoder.from_pretrained(demo().models.text_encoder)
    with runs.experiment(config(), text_encoder, FACES, folder) as opened:
        for step in train(opened):
            print(step.number, flush=True)


def start(folder: Path, kill_after: int | None = None) -> None:
    """The same in a process of its own, which SIGKILL ends after so many steps.

    TF32 and cuDNN's search for the fastest convolution are off: it may end in another one each
    time.

    Raises:
        RuntimeError: it failed by itself; its messages are above.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.resume", str(folder)]
    exact = os.environ | {"LDM_EXACT": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=exact, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if kill_after is not None and line.strip() == str(kill_after):
                process.kill()
    if kill_after is None and process.returncode:
        raise RuntimeError(f"a small run ended with {process.returncode}: see its messages")


def killed_and_resumed() -> dict[str, float]:
    """Largest differences of losses and averaged weights: of a run that was killed, and of one that
    was not, from a third.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("one", "other", "killed")]
        start(folders[0]), start(folders[1])
        start(folders[2], KILLED_AFTER)
        _, checkpoint = checkpoints.open_newest(folders[2], map_memory=False)
        start(folders[2])
        undisturbed = difference(folders[0], folders[1])
        killed = difference(folders[0], folders[2])
    return {
        "step_of_its_checkpoint": checkpoint.step,
        "loss": killed[0],
        "weight": killed[1],
        "loss_undisturbed": undisturbed[0],
        "weight_undisturbed": undisturbed[1],
    }


def difference(one: Path, other: Path) -> tuple[float, float]:
    """Largest difference of a loss, and of an averaged weight, between two finished runs."""
    losses = [[line["loss"] for line in run_folder.read_losses(folder)] for folder in (one, other)]
    newest = [checkpoints.open_newest(folder, map_memory=False)[1] for folder in (one, other)]
    weights = [checkpoint.ema for checkpoint in newest]
    return (
        max(abs(a - b) for a, b in zip(*losses, strict=True)),
        max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]),
    )


def show(values: dict[str, float]) -> str:
    """The differences for people."""
    if values["loss"] == values["weight"] == 0:
        return "the same run, bit for bit"
    return (
        f"losses differ by {values['loss']:.1e} at most, weights by {values['weight']:.1e}; of two "
        f"undisturbed runs by {values['loss_undisturbed']:.1e} and "
        f"{values['weight_undisturbed']:.1e}"
    )


def require(values: dict[str, float]) -> None:
    """Refuse a run that continues differently.

    Raises:
        RuntimeError: its losses differ by more than `TOLERANCE`, and more than those of runs that
            nobody disturbs.
    """
    if values["loss"] > max(TOLERANCE, 3 * values["loss_undisturbed"]):
        raise RuntimeError(f"a run that was killed did not go on as it would have: {show(values)}")


if __name__ == "__main__":
    finish(Path(sys.argv[1]))
