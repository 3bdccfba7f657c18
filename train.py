"""Train a preset: `python train.py --preset demo`, `accelerate launch train.py --preset celeba_hq`.

Opens everything that can be missing before any long work starts, resumes from the newest checkpoint
if there is one, and writes the run folder and a grid of fixed prompts and seeds after every epoch.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from command_line import command, config_from, parser
from config import Config, override
from inference.samples import save_samples
from models.device import leave_busy_cores
from training import checkpoints
from training.experiment import Experiment
from training.loop import train
from training.tracking import tracked


@command
def main() -> None:
    """Train the preset named on the command line."""
    options = parser(__doc__)
    options.add_argument("--config", type=Path, help="settings of a run: its config.json")
    arguments = options.parse_args()
    if arguments.config and arguments.preset:
        options.error("--config and --preset each name all settings: give one of them")
    config = configured(arguments)
    leave_busy_cores()
    with Experiment(config) as experiment:
        experiment.open_all()
        is_main, done = experiment.accelerator.is_main_process, experiment.state.step
        if is_main:
            say(experiment.summary())
        for step in tracked(train(experiment), experiment.accelerator, config.name, done):
            if is_main and step.number % config.training.log_every == 0:
                say(step.line())
            if is_main and step.number % experiment.batches.steps_per_epoch == 0:
                save_samples(experiment, step.number)
        if is_main:
            say(f"checkpoint: {checkpoints.newest_checkpoint(experiment.folder)}")


def configured(arguments: argparse.Namespace) -> Config:
    """The settings of `--config`, or of `--preset`, with the changes of `--set`."""
    if arguments.config is None:
        return config_from(arguments)
    return override(checkpoints.read_config(read_stored(arguments.config)), arguments.changes)


def read_stored(path: Path) -> object:
    """The settings in a run's config.json.

    Raises:
        ValueError: it is not there, is damaged, or is another file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))["config"]
    except OSError as error:
        raise ValueError(
            f"--config {path}: {error.strerror}; name the config.json of a run folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--config {path} is not the config.json of a run, or is damaged ({error!r}); name "
            "another, or a --preset"
        ) from error


def say(text: str) -> None:
    """Print; where the reader has closed the pipe (`train.py | head`), stop as on SIGTERM."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
