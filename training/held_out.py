"""Faces of the val split with fixed captions, noise and timesteps, for the loss after each epoch.

Shapes: n held-out faces, b of them in this process, C latent channels, h x w latents, L tokens,
D text width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from config import TrainingConfig
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.latent_cache import LatentSource
from diffusion.determinism import sample_generator, share_of
from diffusion.objective import Denoiser, Objective
from models.vae_wrapper import Posterior

NO_STEP = 2**62  # its random numbers are those of no training step
BATCH = 32  # faces in one pass


@dataclass(frozen=True)
class HeldOut:
    """One process's share of the held-out faces, ready to be denoised."""

    places: range  # of this share among all n
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
        for start in range(0, len(self.places), BATCH):
            some = slice(start, start + BATCH)
            losses[list(self.places)[some]] = objective.loss(
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
    """Draw the held-out faces, `config.validation_faces` at most, and encode one process's share.

    Args:
        faces: of the val split.
        latents: their posteriors.
        encode_text: captions -> hidden states (b, L, D), on the device of the denoiser.

    Raises:
        ValueError: fewer faces than processes.
    """
    seed = config.seed
    positions = np.random.default_rng([seed, NO_STEP]).permutation(len(faces))
    positions = positions[: config.validation_faces]
    places = share_of(len(positions), process, processes)
    if len(positions) < processes:
        raise ValueError(
            f"{len(positions)} held-out faces cannot be shared among {processes} processes: start "
            "fewer, or set training.validation_faces=0"
        )
    mine = positions[places.start : places.stop]
    posteriors, states = [], []
    for some in (mine[start : start + BATCH] for start in range(0, len(mine), BATCH)):
        posteriors.append(latents.fetch(some, np.zeros(len(some), bool)))
        states.append(encode_text([faces.caption(at, 0, seed).text for at in some.tolist()]))
    hidden_states = torch.cat(states)  # (b, L, D)
    generators = [sample_generator(seed, NO_STEP, place) for place in places]
    shape = tuple(posteriors[0].mean.shape[1:])
    normal = np.stack([g.standard_normal((2, *shape), np.float32) for g in generators])
    normal = torch.from_numpy(normal)  # (b, 2, C, h, w)
    means, stds = (torch.cat(part) for part in zip(*posteriors, strict=True))
    middles = (torch.tensor(list(places)) + 0.5) / len(positions)
    device = hidden_states.device
    return HeldOut(
        places,
        len(positions),
        Posterior(means, stds).sample(normal[:, 0]).to(device),
        normal[:, 1].to(device),
        (middles * num_train_timesteps).long().to(device),
        hidden_states,
    )
