"""Changing a given face: noise it part of the way and denoise it under other words.

Shapes: B batch, C latent channels, h x w latents, H x W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_dtype

from diffusion.sampling import build_sampler, renoise
from inference.text_to_face import TextToFace, paired
from models.device import freed_memory_kept


@torch.no_grad()
def edit(
    model: TextToFace,
    images: Tensor,
    prompts: str | Sequence[str],
    seeds: Sequence[int],
    strength: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Faces made again under other captions, (B, 3, H, W) in [0, 1] on the CPU.

    Args:
        images: (B, 3, H, W) at the size of the run's pictures, uint8 or float in [0, 1].
        prompts: one an image, or a single text for all.
        seeds: one an image.
        strength: share of the steps that are taken, in (0, 1]: how far from the given face.
        mask: bool (H, W), True where the picture may change; elsewhere it stays as it is, pixel by
            pixel. None: everywhere.

    Raises:
        ValueError: an argument that cannot be used; names it.
    """
    size, how = model.config.picture_size, model.settings()
    prompts, seeds = paired(prompts, seeds)
    if images.shape != (len(seeds), 3, size, size):
        raise ValueError(f"images: {tuple(images.shape)} is not {(len(seeds), 3, size, size)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images: {images.dtype} is neither uint8 nor a float")
    given = to_dtype(images.cpu(), torch.float32, scale=True)
    if not (given.min() >= 0 and given.max() <= 1):  # false for nan too
        raise ValueError(f"images: floats from {given.min():.3g} to {given.max():.3g}, not [0, 1]")
    if not 0 < strength <= 1:
        raise ValueError(f"strength: {strength:g} is out of range; use more than 0 and at most 1")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (size, size)):
        raise ValueError(f"mask: {mask.dtype} {tuple(mask.shape)} is not bool ({size}, {size})")
    model.require_fit(prompts, how)
    with freed_memory_kept(model.device):
        latents = model.encode((given * 2 - 1).to(model.device))
        predict = model.predictor(prompts, how)
        scheduler = build_sampler(how.sampler, model.objective)
        free = None
        if mask is not None:  # the latent positions (1, 1, h, w) of which any pixel may change
            pooled = functional.adaptive_max_pool2d(mask[None, None].float(), latents.shape[-2:])
            free = pooled.bool().to(latents.device)
        edited = renoise(predict, scheduler, latents, seeds, how.steps, strength, free)
        pictures = model.decode(edited)
    return pictures if mask is None else torch.where(mask.cpu(), pictures, given)
