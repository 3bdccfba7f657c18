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

from command_line import command, config_from, parser, path
from config import Config
from settings import override

LOG_EVERY = 10  # steps between two printed lines


@command
def main() -> None:
    """Train the preset named on the command line."""
    options = parser(__doc__)
    options.add_argument("--config", type=path, help="settings of a run: its config.json")
    arguments = options.parse_args()
    if arguments.config and arguments.preset:
        options.error("--config and --preset each name all settings: give one of them")
    config = read_stored(arguments) if arguments.config else config_from(arguments)
    # torch takes seconds to import: a wrong word is answered before that.
    from inference.samples import save_samples
    from models.device import leave_busy_cores
    from training import checkpoints
    from training.experiment import Experiment
    from training.loop import train
    from training.tracking import tracked

    leave_busy_cores()
    with Experiment(config) as experiment:
        experiment.open_all()
        is_main, done = experiment.accelerator.is_main_process, experiment.state.step
        if is_main:
            say(experiment.summary())
        for step in tracked(train(experiment), experiment.accelerator, config.name, done):
            if is_main and step.number % LOG_EVERY == 0:
                say(step.line())
            if is_main and step.number % experiment.batches.steps_per_epoch == 0:
                save_samples(experiment, step.number)
        if is_main:
            say(f"checkpoint: {checkpoints.newest_checkpoint(experiment.folder)}")


def read_stored(arguments: argparse.Namespace) -> Config:
    """The settings in a run's config.json, with the changes of `--set`.

    Raises:
        ValueError: it is not there, is damaged, or is another file.
    """
    from training.old_configs import read_config

    try:
        stored = json.loads(arguments.config.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--config {arguments.config} is not the config.json of a run ({error!r}); name "
            "another, or a --preset"
        ) from error
    return override(read_config(stored), arguments.changes)


def say(text: str) -> None:
    """Print; where the reader has closed the pipe (`train.py | head`), stop as on SIGTERM."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    main()
