"""Training without a notebook: `python train.py --preset demo`, `accelerate launch train.py
--preset celeba_hq`.

Opens everything that can be missing before any long work starts, goes on from the newest checkpoint
if there is one, and writes the run folder and a grid of fixed prompts and seeds every so often.
"""

import argparse
import sys

from torchvision.utils import save_image

from config import get_config
from training import checkpoints
from training.experiment import Experiment, open_experiment
from training.loop import train
from training.tracking import log_pictures, tracked


def main() -> None:
    """Train the preset named on the command line (default: LDM_PRESET, then `celeba_hq`)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default=None)
    experiment = open_experiment(get_config(parser.parse_args().preset))
    print(experiment.summary())
    accelerator = experiment.accelerator
    is_main, epoch = accelerator.is_main_process, None
    try:
        steps = train(**experiment.training_inputs())
        done = experiment.state.step
        for step in tracked(steps, accelerator, experiment.config.name, done):
            if is_main and step.number % 10 == 0:
                print(step.line(), flush=True)
            if is_main and epoch is not None and step.epoch != epoch:
                save_samples(experiment, step.number)
            epoch = step.epoch
    except KeyboardInterrupt as stopped:
        print(f"{stopped or 'stopped within a step; start again to go on'}: run the same command")
        sys.exit(130)
    print(f"checkpoint: {checkpoints.newest_checkpoint(experiment.folder)}")


def save_samples(experiment: Experiment, number: int) -> None:
    """Draw the preset's fixed prompts from fixed seeds into `samples/` and the tracker."""
    prompts = experiment.config.sampling.prompts
    images = experiment.text_to_face().generate(prompts, range(len(prompts)))
    folder = experiment.folder / "samples"
    folder.mkdir(exist_ok=True)
    log_pictures(experiment.accelerator, images, number)
    save_image(images, folder / f"step_{number:07d}.png", nrow=4)


if __name__ == "__main__":
    main()
