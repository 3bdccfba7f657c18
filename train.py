"""Train a preset: `python train.py --preset demo`, `accelerate launch train.py --preset celeba_hq`.

Opens everything that can be missing before any long work starts, goes on from the newest checkpoint
if there is one, and writes the run folder and a grid of fixed prompts and seeds after every epoch.
"""

import os
import signal
import sys
from pathlib import Path

from torchvision.utils import save_image

from command_line import command, config_from, parser
from inference.text_to_face import TextToFace
from training import checkpoints
from training.experiment import Experiment
from training.loop import train
from training.tracking import log_pictures, tracked


@command
def main() -> None:
    """Train the preset named on the command line."""
    config = config_from(parser(__doc__).parse_args())
    with Experiment(config) as experiment:
        experiment.open_all()
        is_main, epoch = experiment.accelerator.is_main_process, None
        done = experiment.state.step
        if is_main:
            say(experiment.summary())
        for step in tracked(train(experiment), experiment.accelerator, config.name, done):
            if is_main and step.is_read and step.number % 10 == 0:
                say(step.line())
            if is_main and epoch is not None and step.epoch != epoch:
                save_samples(experiment, step.number)
            epoch = step.epoch
        if is_main:
            say(f"checkpoint: {checkpoints.newest_checkpoint(experiment.folder)}")


def say(text: str) -> None:
    """Print; where nobody reads any more (`train.py | head`), stop as on SIGTERM."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115, until the process ends
        signal.raise_signal(signal.SIGTERM)


def save_samples(experiment: Experiment, number: int) -> None:
    """Draw the preset's fixed prompts from fixed seeds into `samples/` and the tracker."""
    prompts = experiment.config.sampling.prompts
    model = TextToFace.of(experiment)
    images = model.generate(prompts, range(len(prompts)))
    folder = experiment.folder / "samples"
    folder.mkdir(exist_ok=True)
    log_pictures(experiment.accelerator, images, number)
    save_image(images, folder / f"step_{number:07d}.png", nrow=4)


if __name__ == "__main__":
    main()
