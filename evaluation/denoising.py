"""The denoising loss of given faces under a trained model, at given noise: input of `loss_gap`."""

import numpy as np
import torch
from torch import Tensor

from custom_datasets.celeba_hq_dataset import to_model_range
from evaluation.loss_gap import Loss
from evaluation.sets import FaceImages, read
from inference.text_to_face import DECODE_BATCH, TextToFace


def denoising_loss(model: TextToFace, images: FaceImages, workers: int = 4) -> Loss:
    """The loss of some faces, each under a caption that training may give it, before weighting.

    A face is encoded once, for any number of noises and timesteps.

    Returns:
        (positions (B,), timesteps (B,), seeds of the noise (B,)) -> losses (B,).
    """
    faces, kept = images.faces, {}

    def encode(positions: np.ndarray) -> None:
        new = [int(place) for place in np.unique(positions) if place not in kept]
        for some in (new[i : i + DECODE_BATCH] for i in range(0, len(new), DECODE_BATCH)):
            pixels = to_model_range(read(images, some, workers)).to(model.device)
            places = [int(images.places[position]) for position in some]
            seed = model.config.training.seed
            captions = [faces.caption(at, 0, seed).text for at in places]
            latents, states = model.encode(pixels), model.encode_text(captions)
            kept.update(zip(some, zip(latents, states, strict=True), strict=True))

    @torch.no_grad()
    def loss(positions: np.ndarray, timesteps: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        encode(positions)
        pairs = [kept[int(position)] for position in positions]
        latents, states = (torch.stack(part) for part in zip(*pairs, strict=True))
        at = torch.from_numpy(timesteps).to(model.device)
        objective = model.objective.to(model.device)
        noise = _noise(seeds, latents)
        return objective.loss(model.denoise, latents, states, at, noise).cpu().numpy()

    return loss


def _noise(seeds: np.ndarray, latents: Tensor) -> Tensor:
    """Noise of the latents' shape, each sample's from its seed, the same on every device."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    noise = [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
    return torch.stack(noise).to(latents.device)
