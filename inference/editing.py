"""Changing a given face: noise it part of the way and denoise it under other words.

Shapes: B batch, C latent channels, h x w latents, H x W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from custom_datasets.celeba_hq_dataset import to_model_range
from diffusion.sampling import build_sampler, renoise
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept


@torch.no_grad()
def edit(
    model: TextToFace,
    images: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strength: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Faces redrawn under other captions, (B, 3, H, W) in [0, 1] on the CPU.

    Args:
        images: uint8 (B, 3, H, W) at the model's size.
        prompts, seeds: one an image.
        strength: share of the steps that are taken, in (0, 1]: how far from the given face.
        mask: bool (H, W), True where the picture may change; elsewhere it stays as it is, pixel by
            pixel. None: everywhere.

    Raises:
        ValueError: strength out of range, a number, a type or a size that does not fit.
    """
    _require(model, images, prompts, seeds, strength, mask)
    settings = model.config.sampling
    with freed_memory_kept(model.device):
        latents = model.vae.posterior(to_model_range(images).to(model.device)).mean
        predict = model.predictor(prompts, settings.guidance_scale)
        scheduler = build_sampler(settings.sampler, model.objective)
        free = None if mask is None else _over_latents(mask, latents)
        edited = renoise(predict, scheduler, latents, seeds, settings.steps, strength, free)
        pictures = model.decode(edited)
    return pictures if mask is None else torch.where(mask, pictures, images / 255)


def _require(
    model: TextToFace,
    images: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strength: float,
    mask: Tensor | None,
) -> None:
    size = model.config.data.image_size
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: more than 0 and at most 1 is needed")
    if images.dtype != torch.uint8:
        raise ValueError(f"images of {images.dtype}: uint8 values from 0 to 255 are needed")
    if images.shape[1:] != (3, size, size) or not len(images) == len(prompts) == len(seeds):
        raise ValueError(
            f"{tuple(images.shape)} images, {len(prompts)} prompts, {len(seeds)} seeds: one prompt "
            f"and seed an image of {size} px are needed"
        )
    if mask is not None and (mask.shape != (size, size) or mask.dtype != torch.bool):
        raise ValueError(
            f"a mask of {mask.dtype} {tuple(mask.shape)}: bool ({size}, {size}) is needed"
        )


def _over_latents(mask: Tensor, latents: Tensor) -> Tensor:
    """The latent positions (1, 1, h, w) of which any pixel may change."""
    pooled = functional.adaptive_max_pool2d(mask[None, None].float(), latents.shape[-2:])
    return pooled.bool().to(latents.device)
