"""The denoising loss of held-out faces after each epoch.

Faces, captions, noise and timesteps never change, so two epochs differ by their weights alone. The
averaged weights are measured, which sampling uses. The lowest loss decides which checkpoint is kept
as the best.
"""

from typing import Any

import numpy as np
from torch import Tensor

from models.device import autocast
from training import run_folder
from training.experiment import Experiment
from training.step import TIMESTEP_BINS


class Validation:
    """Measures the held-out faces with the averaged weights, and writes `validation.jsonl`."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.held_out = experiment.held_out
        self.objective = experiment.objective.to(experiment.device)

    def is_due(self) -> bool:
        """Whether this step is the last of an epoch."""
        step, length = self.experiment.state.step, self.experiment.batches.steps_per_epoch
        return self.held_out is not None and step % length == 0

    def measure(self) -> float:
        """The mean loss of the held-out faces. All processes must call it together."""
        experiment = self.experiment
        losses = self.held_out.losses(self._denoise, self.objective)
        values = experiment.accelerator.reduce(losses).tolist()
        step = experiment.state.step
        record = validation_record(values, step, step // experiment.batches.steps_per_epoch)
        if experiment.accelerator.is_main_process:
            run_folder.append_lines(experiment.folder / run_folder.VALIDATION, [record])
        return record["loss"]

    def _denoise(self, noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        with autocast(self.experiment.precision, noisy_latents.device):
            return self.experiment.state.ema_unet(noisy_latents, timesteps, hidden_states).sample


def validation_record(losses: list[float], step: int, epoch: int) -> dict[str, Any]:
    """A line of `validation.jsonl`: the losses (n,) in order of their timesteps, and their means.

    `loss_by_timestep` has the bins of `losses.jsonl`; None: no face in it.
    """
    bins = np.arange(len(losses)) * TIMESTEP_BINS // len(losses)
    values = np.array(losses)
    parts = [values[bins == number] for number in range(TIMESTEP_BINS)]
    return {
        "step": step,
        "epoch": epoch,
        "loss": round(float(values.mean()), 6),
        "loss_by_timestep": [round(float(part.mean()), 6) if len(part) else None for part in parts],
        "losses": [round(loss, 6) for loss in losses],
    }
