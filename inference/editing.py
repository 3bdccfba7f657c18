"""Changing a given face: noise it part of the way and denoise it under other words.

SDEdit (Meng et al. 2022) for the whole face; for a part of it the rest is put back at every step,
at that step's noise level (Lugmayr et al. 2022, RePaint, without its resampling).

Shapes: B batch, C latent channels, h x w latents, H x W image.
"""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from custom_datasets.celeba_hq_dataset import to_model_range
from diffusion.sampling import Predictor, build_sampler, set_timesteps
from inference.text_to_face import TextToFace
from models.device import freed_memory_kept


@torch.no_grad()
@freed_memory_kept()
def edit(
    model: TextToFace,
    images: torch.Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strength: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Faces redrawn under other captions, (B, 3, H, W) in [0, 1] on the CPU.

    Args:
        images: uint8 (B, 3, H, W) at the model's size.
        prompts, seeds: one an image.
        strength: share of the steps that are taken, in (0, 1]: how far from the given face.
        mask: bool (H, W), True where the picture may change; elsewhere it stays as it is, pixel by
            pixel. None: everywhere.

    Raises:
        ValueError: strength out of range, a number or a size that does not fit.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength}: more than 0 and at most 1 is needed")
    size = model.config.data.image_size
    if images.shape[1:] != (3, size, size) or not len(images) == len(prompts) == len(seeds):
        raise ValueError(
            f"{tuple(images.shape)} images, {len(prompts)} prompts, {len(seeds)} seeds: one prompt "
            f"and seed an image of {size} px are needed"
        )
    if mask is not None and mask.shape != (size, size):
        raise ValueError(f"a mask of {tuple(mask.shape)} for images of {size} px")
    settings, device = model.config.sampling, next(model.unet.parameters()).device
    latents = model.vae.encode(to_model_range(images).to(device)).mean
    predict = model.predict(prompts, settings.guidance_scale)
    scheduler = build_sampler(settings.sampler, model.config.diffusion)
    free = None if mask is None else _over_latents(mask, latents)
    edited = renoise(predict, scheduler, latents, seeds, settings.steps, strength, free)
    pictures = model.decode(edited)
    return pictures if mask is None else torch.where(mask, pictures, images / 255)


def _over_latents(mask: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The latent positions (1, 1, h, w) of which any pixel may change."""
    pooled = functional.adaptive_max_pool2d(mask[None, None].float(), latents.shape[-2:])
    return pooled.bool().to(latents.device)


def renoise(
    predict: Predictor,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    seeds: Sequence[int],
    steps: int,
    strength: float,
    free: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents (B, C, h, w), noised and denoised over the last `strength` of so many steps.

    Args:
        free: bool, broadcastable to the latents; where it is False they end as they were.
    """
    set_timesteps(scheduler, steps, latents.device)
    begin = steps - max(1, round(steps * strength))
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.set_begin_index(begin)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = randn_tensor(latents.shape, generator=generators, device=latents.device)
    options = {} if isinstance(scheduler, DDIMScheduler) else {"generator": generators}
    timesteps = scheduler.timesteps[begin:]
    current = scheduler.add_noise(latents, noise, timesteps[:1])
    for number, timestep in enumerate(timesteps, start=1):
        prediction = predict(scheduler.scale_model_input(current, timestep), timestep)
        current = scheduler.step(prediction.float(), timestep, current, **options).prev_sample
        if free is not None:
            after = timesteps[number : number + 1]
            given = scheduler.add_noise(latents, noise, after) if len(after) else latents
            current = torch.where(free, current, given)
    return current
