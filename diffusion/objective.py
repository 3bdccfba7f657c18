"""The forward process and what the denoiser is trained on.

Knows tensors and callables only. Notation of Ho et al. 2020 (DDPM) and Salimans & Ho 2022
(v-prediction): x_t = alpha_t x_0 + sigma_t eps with alpha_t^2 = abar_t, sigma_t^2 = 1 - abar_t, SNR
= alpha_t^2 / sigma_t^2.

Shapes: B batch, C latent channels, h x w latents, L caption tokens, D text width.
"""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler

from config import DiffusionConfig

PREDICTION_TYPES = ("epsilon", "v_prediction")
Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def build_noise_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """The DDPM forward process of the config.

    `clip_sample` is off: diffusers' default clamps to [-1, 1], which is right for pixels and cuts
    latents of unit variance to a standard deviation of 0.68.

    Raises:
        ValueError: unknown prediction type.
    """
    if config.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {config.prediction_type!r}: {PREDICTION_TYPES}")
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        clip_sample=False,
    )


def signal_to_noise(noise_scheduler: DDPMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR(t) = abar_t / (1 - abar_t), shape of `timesteps`."""
    alphas_cumprod = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return alphas_cumprod / (1 - alphas_cumprod)


def loss_weights(
    noise_scheduler: DDPMScheduler, timesteps: torch.Tensor, snr_gamma: float | None
) -> torch.Tensor:
    """Weight of each sample's loss, (B,): ones, or min-SNR-gamma (Hang et al. 2023, equation 8 and
    appendix).

    min(SNR, gamma) / SNR when the noise is predicted, min(SNR, gamma) / (SNR + 1) when v is; both
    are the same weight min(SNR, gamma) on the error of x_0.
    """
    if snr_gamma is None:
        return torch.ones(timesteps.shape, device=timesteps.device)
    snr = signal_to_noise(noise_scheduler, timesteps)
    divisor = snr if noise_scheduler.config.prediction_type == "epsilon" else snr + 1
    return snr.clamp(max=snr_gamma) / divisor


def training_target(
    noise_scheduler: DDPMScheduler,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """What the denoiser has to predict, (B, C, h, w): eps, or v = alpha_t eps - sigma_t x_0."""
    if noise_scheduler.config.prediction_type == "epsilon":
        return noise
    return noise_scheduler.get_velocity(latents, noise, timesteps)


def loss_per_sample(
    denoiser: Denoiser,
    noise_scheduler: DDPMScheduler,
    latents: torch.Tensor,
    hidden_states: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Squared error of the prediction, mean over each sample's values, before weighting: (B,).

    Args:
        denoiser: (noisy latents (B, C, h, w), timesteps (B,), hidden states (B, L, D)) -> (B, C, h,
            w).
    """
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    prediction = denoiser(noisy_latents, timesteps, hidden_states)
    target = training_target(noise_scheduler, latents, noise, timesteps)
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def drop_captions(
    captions: list[str], probability: float, generator: torch.Generator
) -> tuple[list[str], torch.Tensor]:
    """Replace each caption by the empty one with this probability (Ho & Salimans 2022).

    Returns the captions and the mask (B,) of those dropped.
    """
    dropped = torch.rand(len(captions), generator=generator) < probability
    kept = ["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)]
    return kept, dropped
