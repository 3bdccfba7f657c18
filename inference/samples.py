"""Grids of fixed prompts and seeds, made during training."""

from pathlib import Path

import torch
from torchvision.io import decode_image
from torchvision.utils import save_image

from files import replacing
from inference.text_to_face import TextToFace
from training.experiment import Experiment
from training.tracking import log_pictures


def save_samples(experiment: Experiment, step: int) -> None:
    """Sample the preset's prompts with the averaged weights into `samples/` and the tracker.

    Pictures that are not finite, or for which memory is lacking, cost a message, not the run.
    """
    prompts = experiment.config.sampling.prompts
    try:
        images = TextToFace.of(experiment).generate(prompts, range(len(prompts)))
    except (FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"no samples at step {step}: {error}")
        return
    folder = experiment.folder / "samples"
    folder.mkdir(exist_ok=True)
    log_pictures(experiment.accelerator, images, step)
    with replacing(folder / f"step_{step:07d}.png") as path:
        save_image(images, path, format="png", nrow=4)


def saved_samples(folder: Path, count: int) -> dict[int, torch.Tensor]:
    """Grids of a run folder, uint8 (3, H, W) by their step, spread evenly over the run."""
    paths = sorted((folder / "samples").glob("step_*.png"))
    slots = torch.linspace(0, len(paths) - 1, min(count, len(paths))).round().int().tolist()
    return {int(paths[i].stem[5:]): decode_image(str(paths[i])) for i in slots}
