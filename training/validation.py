"""The denoising loss of held-out faces after each epoch.

Faces of the val split with captions, noise and timesteps that never change, so two epochs differ by
their weights alone. The averaged weights are measured, which sampling uses. The lowest loss decides
which checkpoint is kept as the best.

Shapes: n held-out faces, C latent channels, h x w latents, L tokens, D text width, T timesteps.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import TrainingConfig
from custom_datasets import screening
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import epoch_order, sample_generator
from diffusion.objective import Objective
from models.graphs import GraphedUNet
from models.vae_wrapper import Posterior
from training.batches import normal_of
from training.tracking import measure, measured

NO_STEP = 2**62  # its random numbers are those of no training step
BATCH = 32  # faces in one pass


class HeldOut(NamedTuple):
    """The held-out faces, as `Objective.loss` takes them."""

    latents: Tensor  # (n, C, h, w)
    hidden_states: Tensor  # (n, L, D) of each face's caption
    timesteps: Tensor  # (n,), spread evenly over [0, T), in order
    noise: Tensor  # (n, C, h, w)
    key: str  # identifies the faces and captions: losses of others do not compare


def encode_held_out(
    faces: CelebAHQ,
    config: TrainingConfig,
    latents: LatentSource,
    encode_text: Callable[[list[str]], Tensor],
    num_train_timesteps: int,
) -> HeldOut:
    """Choose the held-out faces, `config.validation_faces` at most, and encode them.

    Args:
        faces: of the val split.
        latents: their posteriors.
        encode_text: captions -> hidden states (b, L, D), on the device of the denoiser.
    """
    chosen = epoch_order(len(faces), config.seed, NO_STEP)[: config.validation_faces]
    captions = [faces.caption(int(i), 0, config.seed).text for i in chosen]
    posteriors, states = [], []
    for start in range(0, len(chosen), BATCH):
        some = slice(start, start + BATCH)
        posteriors.append(latents.fetch(chosen[some], np.zeros(len(chosen[some]), bool)))
        states.append(encode_text(captions[some]))
    means, stds = (torch.cat(part) for part in zip(*posteriors, strict=True))
    what = json.dumps([screening.fingerprint(faces), captions])
    generators = [sample_generator(config.seed, NO_STEP, slot) for slot in range(len(chosen))]
    normal = torch.stack([normal_of(generator, means.shape[1:]) for generator in generators])
    middles = (torch.arange(len(chosen)) + 0.5) / len(chosen)
    device = states[0].device
    return HeldOut(
        Posterior(means, stds).sample(normal[:, 0]).to(device),
        torch.cat(states),
        (middles * num_train_timesteps).long().to(device),
        normal[:, 1].to(device),
        hashlib.sha256(what.encode()).hexdigest()[:16],
    )


def validation_of(
    held_out: HeldOut, unet: UNet2DConditionModel, objective: Objective, precision: str
) -> Callable[[], dict[str, Any]]:
    """Measures the averaged UNet as it is: a record of `validation.jsonl`, without its step."""
    denoise = GraphedUNet(unet, precision)
    objective = objective.to(held_out.latents.device)
    *tensors, key = held_out

    @torch.no_grad()
    def validate() -> dict[str, Any]:
        batches = zip(*(part.split(BATCH) for part in tensors), strict=True)
        losses = torch.cat([objective.loss(denoise, *batch) for batch in batches])
        times, steps = held_out.timesteps, objective.num_train_timesteps
        # As of a training step, without a gradient.
        found = measured(measure(losses, times, steps, losses.new_zeros(())).tolist())
        bins = [None if x is None else round(x, 6) for x in found["loss_by_timestep"]]
        values = [round(loss, 6) for loss in losses.tolist()]
        loss = round(found["loss"], 6)
        return {"loss": loss, "loss_by_timestep": bins, "faces": key, "losses": values}

    return validate
