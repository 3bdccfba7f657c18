"""Changing a given face: noise it part of the way and denoise it under other words.

Shapes: B batch, C latent channels, h x w latents, H x W image.
"""

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import to_dtype, to_image

from custom_datasets.celeba_hq_dataset import to_rgb
from diffusion.sampling import build_sampler, renoise
from inference.text_to_face import TextToFace, paired
from models.device import freed_memory_kept


@torch.no_grad()
def edit(
    model: TextToFace,
    images: Tensor | Iterable[Tensor | Image.Image],
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    strength: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Faces made again under other captions, (B, 3, H, W) in [0, 1] on the CPU.

    Args:
        images: see `read_images`.
        prompts: one an image, or a single text for all.
        seeds: one an image.
        strength: share of the steps that are taken, in (0, 1]: how far from the given face.
        mask: bool (H, W), True where the picture may change; elsewhere it stays as it is, pixel by
            pixel. None: everywhere.

    Raises:
        ValueError: an argument that cannot be used; names it.
    """
    size, how = model.config.picture_size, model.settings()
    given = read_images(images, size)
    prompts, seeds = paired(prompts, seeds)
    if len(given) != len(seeds):
        raise ValueError(f"{len(given)} images for {len(seeds)} seeds: give one seed an image")
    if not 0 < strength <= 1:
        raise ValueError(f"strength: {strength:g} is out of range; use more than 0 and at most 1")
    mask = None if mask is None else torch.as_tensor(mask).cpu()
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (size, size)):
        raise ValueError(
            f"mask: {mask.dtype} {tuple(mask.shape)} is not bool ({size}, {size}), True where the "
            "picture may change; compare with a threshold, such as mask > 0.5"
        )
    model.require_fit(prompts, how)
    with freed_memory_kept(model.device):
        latents = model.encode((given * 2 - 1).to(model.device))
        predict = model.predictor(prompts, how.guidance_scale)
        scheduler = build_sampler(how.sampler, model.objective)
        free = None
        if mask is not None:  # the latent positions (1, 1, h, w) of which any pixel may change
            pooled = functional.adaptive_max_pool2d(mask[None, None].float(), latents.shape[-2:])
            free = pooled.bool().to(latents.device)
        edited = renoise(predict, scheduler, latents, seeds, how.steps, strength, free)
        pictures = model.decode(edited)
    return pictures if mask is None else torch.where(mask, pictures, given)


def read_images(images: Tensor | Iterable[Tensor | Image.Image], size: int) -> Tensor:
    """Images as float (B, 3, size, size) in [0, 1] on the CPU.

    Args:
        images: one or several: PIL images, tensors (3, H, W) or arrays (H, W, 3), uint8 or float in
            [0, 1].

    Raises:
        ValueError: another size, type or range.
    """
    is_one = isinstance(images, Image.Image) or getattr(images, "ndim", 4) == 3
    read = []
    for image in [images] if is_one else images:
        pixels = to_image(to_rgb(image) if isinstance(image, Image.Image) else image).cpu()
        if pixels.shape != (3, size, size) or not (
            pixels.dtype == torch.uint8 or pixels.is_floating_point()
        ):
            raise ValueError(
                f"images: {pixels.dtype} {tuple(pixels.shape)} is not uint8 or float (3, {size}, "
                f"{size}), RGB at the model's size; scale it, such as with "
                "torchvision.transforms.v2.functional.resize"
            )
        read.append(to_dtype(pixels, torch.float32, scale=True))
    stacked = torch.stack(read)
    if not (stacked.min() >= 0 and stacked.max() <= 1):  # false for nan too
        raise ValueError(
            f"images: float values from {stacked.min():.3g} to {stacked.max():.3g} are not in "
            "[0, 1]; divide those up to 255 by 255, use x / 2 + 0.5 for [-1, 1]"
        )
    return stacked
