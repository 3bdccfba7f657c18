"""Changing a given face: noise it part of the way and denoise it under other words.

Shapes: B batch, C latent channels, h x w latents, H x W image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from custom_datasets.celeba_hq_dataset import to_model_range, to_rgb
from diffusion.sampling import build_sampler, renoise
from inference import arguments
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept


@torch.no_grad()
def edit(
    model: TextToFace,
    images: Tensor | Sequence[Tensor | Image.Image],
    prompts: str | Sequence[str],
    seeds: int | Sequence[int],
    strength: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Faces redrawn under other captions, (B, 3, H, W) in [0, 1] on the CPU.

    Args:
        images: (B, 3, H, W) at the model's size, uint8 or float in [0, 1]; or a list of such
            (3, H, W), or of PIL images.
        prompts: one an image, or a single text for all.
        seeds: one an image.
        strength: share of the steps that are taken, in (0, 1]: how far from the given face.
        mask: (H, W), True (or 1, or 255) where the picture may change; elsewhere it stays as it is,
            pixel by pixel. None: everywhere.

    Raises:
        ValueError: an argument that cannot be used; names it.
    """
    given = read_images(images, model.config.picture_size)
    prompts, seeds = arguments.pair(prompts, seeds)
    if len(given) != len(prompts):
        raise ValueError(
            f"images: {len(given)} for {len(prompts)} prompts and {len(seeds)} seeds; one prompt "
            "and one seed an image are needed"
        )
    strength = read_strength(strength)
    mask = None if mask is None else read_mask(mask, model.config.picture_size)
    settings = model.config.sampling
    model.require_fit(prompts, settings.sampler, settings.steps)
    with freed_memory_kept(model.device):
        latents = model.encode(to_model_range(given * 255).to(model.device))
        predict = model.predictor(prompts, settings.guidance_scale)
        scheduler = build_sampler(settings.sampler, model.objective)
        free = None if mask is None else _over_latents(mask, latents)
        edited = renoise(predict, scheduler, latents, seeds, settings.steps, strength, free)
        pictures = model.decode(edited)
    return pictures if mask is None else torch.where(mask, pictures, given)


def read_images(images: object, size: int) -> Tensor:
    """Images as float (B, 3, size, size) in [0, 1] on the CPU.

    Takes one image or several, as tensors, numpy arrays (also with the channels last, as they
    mostly are) or PIL images.

    Raises:
        ValueError: another size, type or range; names the image and the fix.
    """
    if isinstance(images, Tensor | np.ndarray | Image.Image):
        is_one = isinstance(images, Image.Image) or images.ndim < 4
        items = [images] if is_one else list(images)
    else:
        items = arguments.listed(images, "images", "an image or a list of images")
    if not items:
        raise ValueError("images: an empty list; one or more are needed")
    return torch.stack([_read_image(x, f"images[{i}]", size) for i, x in enumerate(items)])


def _read_image(image: object, name: str, size: int) -> Tensor:
    """One image as float (3, size, size) in [0, 1]."""
    pixels = _as_tensor(to_rgb(image) if isinstance(image, Image.Image) else image, name)
    if pixels.ndim == 3 and pixels.shape[0] != 3 and pixels.shape[2] == 3:
        pixels = pixels.movedim(2, 0)
    if pixels.shape != (3, size, size):
        raise ValueError(
            f"{name}: shape {tuple(pixels.shape)} is not (3, {size}, {size}), RGB at the model's "
            "size; scale it, such as with torchvision.transforms.v2.functional.resize"
        )
    if pixels.dtype == torch.uint8:
        return pixels / 255
    if not pixels.is_floating_point():
        raise ValueError(f"{name}: {pixels.dtype} is not uint8 (0 to 255) or float (0 to 1)")
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= 0 and high <= 1):  # false for nan too
        raise ValueError(
            f"{name}: float values from {low:.3g} to {high:.3g} are not in [0, 1]; divide those up "
            "to 255 by 255, use x / 2 + 0.5 for [-1, 1]"
        )
    return pixels.float()


def read_mask(mask: object, size: int) -> Tensor:
    """A mask as bool (size, size) on the CPU, from two values of any type.

    Raises:
        ValueError: another size, or other values.
    """
    values = _as_tensor(mask, "mask")
    while values.ndim > 2 and len(values) == 1:
        values = values[0]
    if values.shape != (size, size):
        raise ValueError(
            f"mask: shape {tuple(values.shape)} is not ({size}, {size}), one for all images"
        )
    found = values.unique().tolist()
    if not (set(found) <= {0, 1} or set(found) <= {0, 255}):
        raise ValueError(
            f"mask: values such as {found[-1]:g} are neither 0 (stays) nor 1 (may change); compare "
            "with a threshold, such as mask > 0.5"
        )
    return values != 0


def _as_tensor(values: object, name: str) -> Tensor:
    if isinstance(values, Image.Image):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "buif":
        values = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: {arguments.shown(values)} is not a tensor, array or PIL image")
    return values.detach().cpu()


def read_strength(value: object) -> float:
    """A share of the steps in (0, 1]."""
    strength = arguments.read_number(value, "strength")
    if not 0 < strength <= 1:
        raise ValueError(f"strength: {strength:g} is out of range; use more than 0 and at most 1")
    return strength


def _over_latents(mask: Tensor, latents: Tensor) -> Tensor:
    """The latent positions (1, 1, h, w) of which any pixel may change."""
    pooled = functional.adaptive_max_pool2d(mask[None, None].float(), latents.shape[-2:])
    return pooled.bool().to(latents.device)
