"""The denoising loss of held-out faces after each epoch.

Faces of the val split with captions, noise and timesteps that never change, so two epochs differ by
their weights alone. The averaged weights are measured, which sampling uses. The lowest loss decides
which checkpoint is kept as the best.

Shapes: n held-out faces, b of them in this process, C latent channels, h x w latents, L tokens,
D text width, T timesteps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import TrainingConfig
from custom_datasets.captions import describe
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import sample_generator, share_of
from diffusion.objective import Denoiser, Objective
from models.graphs import graphed_unet
from models.vae_wrapper import Posterior
from training import run_folder
from training.step import TIMESTEP_BINS

NO_STEP = 2**62  # its random numbers are those of no training step
BATCH = 32  # faces in one pass


@dataclass(frozen=True)
class HeldOut:
    """One process's share of the held-out faces, ready to be denoised."""

    slots: range  # of this share among all n
    count: int  # n
    latents: Tensor  # (b, C, h, w)
    noise: Tensor  # (b, C, h, w)
    timesteps: Tensor  # (b,); those of all n are spread evenly over [0, T), in order
    hidden_states: Tensor  # (b, L, D) of each face's caption

    @torch.no_grad()
    def losses(self, denoiser: Denoiser, objective: Objective) -> Tensor:
        """Squared errors of all n faces, not weighted, (n,); zero for those of other processes.

        Args:
            objective: with its tables on the device.
        """
        losses = torch.zeros(self.count, device=self.latents.device)
        for start in range(0, len(self.slots), BATCH):
            some = slice(start, start + BATCH)
            losses[list(self.slots)[some]] = objective.loss(
                denoiser,
                self.latents[some],
                self.hidden_states[some],
                self.timesteps[some],
                self.noise[some],
            )
        return losses


def encode_held_out(
    faces: CelebAHQ,
    config: TrainingConfig,
    latents: LatentSource,
    encode_text: Callable[[list[str]], Tensor],
    num_train_timesteps: int,
    process: int = 0,
    processes: int = 1,
) -> HeldOut:
    """Choose the held-out faces, `config.validation_faces` at most, and encode a process's share.

    Args:
        faces: of the val split.
        latents: their posteriors.
        encode_text: captions -> hidden states (b, L, D), on the device of the denoiser.

    Raises:
        ValueError: fewer faces than processes.
    """
    seed = config.seed
    chosen = np.random.default_rng([seed, NO_STEP]).permutation(len(faces))
    chosen = chosen[: config.validation_faces]
    slots = share_of(len(chosen), process, processes)
    if len(chosen) < processes:
        raise ValueError(
            f"{len(chosen)} held-out faces cannot be shared among {processes} processes: start "
            "fewer, or set training.validation_faces=0"
        )
    mine = chosen[slots.start : slots.stop]
    posteriors, states = [], []
    for some in (mine[start : start + BATCH] for start in range(0, len(mine), BATCH)):
        posteriors.append(latents.fetch(some, np.zeros(len(some), bool)))
        rows = [(faces.attributes[face], int(faces.indices[face])) for face in some]
        states.append(encode_text([describe(row, index, 0, seed) for row, index in rows]))
    hidden_states = torch.cat(states)  # (b, L, D)
    generators = [sample_generator(seed, NO_STEP, slot) for slot in slots]
    shape = tuple(posteriors[0].mean.shape[1:])
    normal = np.stack([g.standard_normal((2, *shape), np.float32) for g in generators])
    normal = torch.from_numpy(normal)  # (b, 2, C, h, w)
    means, stds = (torch.cat(part) for part in zip(*posteriors, strict=True))
    middles = (torch.tensor(list(slots)) + 0.5) / len(chosen)
    device = hidden_states.device
    return HeldOut(
        slots,
        len(chosen),
        Posterior(means, stds).sample(normal[:, 0]).to(device),
        normal[:, 1].to(device),
        (middles * num_train_timesteps).long().to(device),
        hidden_states,
    )


def validation_of(
    held_out: HeldOut,
    unet: UNet2DConditionModel,
    objective: Objective,
    precision: str,
    accelerator: Accelerator,
    folder: Path,
) -> Callable[[int, int], float]:
    """(step, finished epochs) -> the loss, which it also writes to `validation.jsonl`.

    All processes must call it together.

    Args:
        unet: the averaged model.
    """
    denoise = graphed_unet(unet, precision)
    objective = objective.to(held_out.latents.device)

    def validate(step: int, epoch: int) -> float:
        losses = accelerator.reduce(held_out.losses(denoise, objective)).tolist()
        record = validation_record(losses, step, epoch)
        if accelerator.is_main_process:
            run_folder.append_lines(folder / run_folder.VALIDATION, [record])
        return record["loss"]

    return validate


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
