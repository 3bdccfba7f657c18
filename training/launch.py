"""Training from a notebook: in its own process on one device, launched on all GPUs of a machine.

Processes cannot be forked once a notebook has touched CUDA, so `train.py` is launched as a
process of its own and its losses are followed.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from config import ROOT
from training import run_folder
from training.experiment import Experiment
from training.loop import train
from training.step import Ledger, Measured, Step
from training.tracking import tracked

POLL_SECONDS = 2.0
SHOWN_LINES = 30  # of the output of a launch that failed


def train_on_this_machine(experiment: Experiment) -> Iterator[Step]:
    """Train with all GPUs of this machine; yields each finished step.

    Raises:
        RuntimeError: the launched processes failed; shows the end of their output.
    """
    if not experiment.launches_processes:
        name, done = experiment.config.name, experiment.state.step
        yield from tracked(train(experiment), experiment.accelerator, name, done)
        return
    done = experiment.state.step  # opening it writes the config that the launch reads
    experiment.let_go()
    try:
        yield from follow(experiment, launch_command(experiment, torch.cuda.device_count()), done)
    finally:
        experiment.take_up()


def launch_command(experiment: Experiment, processes: int) -> list[str]:
    """`accelerate launch train.py` with the settings of the run folder."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = [f"--num_processes={processes}", "--mixed_precision=no", "--dynamo_backend=no"]
    script = [str(ROOT / "train.py"), "--config", str(experiment.folder / "config.json")]
    return [*launcher, *options, *script]


def follow(experiment: Experiment, command: list[str], done: int) -> Iterator[Step]:
    """Run a command that trains into the experiment's folder; yields the steps that it logs.

    An interrupt is passed on to the command, which saves before it ends.

    Raises:
        RuntimeError: the command failed; shows the end of its output.
    """
    path, log = experiment.folder / run_folder.LOSSES, experiment.folder / "launch.log"
    ledger, read = Ledger(experiment.objective.num_train_timesteps), 0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            has_ended = False
            while not has_ended:
                has_ended = process.poll() is not None  # polled first, so that no line is missed
                lines, read = _new_lines(path, read)
                for line in lines:
                    if line["step"] > done:
                        done = line["step"]
                        yield _step(line, ledger)
                time.sleep(0 if has_ended else POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait()
    if process.returncode:
        shown = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise RuntimeError(f"the launched training failed; {log} ends with:\n{shown}")


def _new_lines(path: Path, read: int) -> tuple[list[dict[str, Any]], int]:
    """Complete new lines of a JSON-lines file after the bytes read so far, and the new position."""
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        # A run that resumes truncates its losses first: the file becomes shorter.
        file.seek(read if read <= path.stat().st_size else 0)
        start = file.tell()
        text = file.read().rpartition(b"\n")[0]
    lines = [json.loads(line) for line in text.splitlines()]
    return lines, start + len(text) + (1 if text else 0)


def _step(line: dict[str, Any], ledger: Ledger) -> Step:
    moved = line["loss"] is not None
    loss = line["loss"] if moved else float("nan")
    known = Measured(loss, tuple(line["loss_by_timestep"]), float("nan"), moved)
    return Step(
        line["step"],
        line["epoch"],
        line["learning_rate"],
        ledger,
        line["images_per_second"],
        known=known,
    )
