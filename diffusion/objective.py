"""One objective: how latents are noised, what the denoiser predicts, how its error is weighted.

Knows tensors and callables only. The forward process mixes a clean latent x_0 with noise eps,

    x_t = alpha_t x_0 + sigma_t eps,  alpha_t^2 + sigma_t^2 = 1,  SNR(t) = alpha_t^2 / sigma_t^2.

This alpha_t is sqrt(alpha_bar_t) of Ho et al. 2020, whose own alpha_t is 1 - beta_t. A denoiser
predicts a target that is linear in both, a_t x_0 + b_t eps: the noise, (a, b) = (0, 1), in Ho et
al. 2020; v = alpha_t eps - sigma_t x_0, that is (-sigma_t, alpha_t), in Salimans & Ho 2022. So two
pairs of coefficients describe an objective. Another objective is another (a, b), or another (alpha,
sigma): named in `DiffusionConfig`, and told to diffusers' schedulers by `scheduler_options`.

Shapes: B batch, C latent channels, h x w latents, L caption tokens, D text width, T timesteps.
"""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from config import DiffusionConfig

# (noisy latents (B, C, h, w), timesteps (B,), hidden states (B, L, D)) -> prediction (B, C, h, w)
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


class Objective:
    """A forward process, its target, loss weight and timestep distribution, as tables over t."""

    def __init__(self, config: DiffusionConfig) -> None:
        self.num_train_timesteps = config.num_train_timesteps  # T
        # What a scheduler of diffusers needs to sample the same process.
        self.scheduler_options = {
            "num_train_timesteps": config.num_train_timesteps,
            "beta_schedule": config.beta_schedule,
            "prediction_type": config.prediction_type,
        }
        alphas_cumprod = DDPMScheduler(**self.scheduler_options).alphas_cumprod
        alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self.alpha, self.sigma = alpha, sigma  # (T,)
        targets = {
            "epsilon": (torch.zeros_like(alpha), torch.ones_like(alpha)),
            "v_prediction": (-sigma, alpha),
        }
        self.a, self.b = targets[config.prediction_type]
        # |error of x_0| = amplification * |error of the prediction|, at a given x_t: x_t and the
        # target are two equations in x_0 and eps, with this determinant.
        determinant = alpha * self.b - sigma * self.a
        amplification = (sigma / determinant).abs()
        weight = torch.ones_like(alpha)
        if config.snr_gamma is not None:
            # min(SNR, gamma) on the squared error of x_0, as a weight on that of the prediction.
            # Hang et al. 2023, equation 8: min(SNR, gamma) / SNR where the noise is predicted and
            # min(SNR, gamma) / (SNR + 1) where v is.
            weight = self.snr.clamp(max=config.snr_gamma) * amplification.square()
        weight = torch.lerp(weight, weight.mean(), config.uniform_share)
        is_drawn = config.timestep_sampling == "weight"  # t, and the loss is not weighted
        self.probabilities = weight / weight.sum() if is_drawn else None
        # With t drawn in proportion to the weight, its mean keeps the loss the same on average.
        self.loss_weight = weight.mean().expand(len(weight)) if is_drawn else weight

    @property
    def snr(self) -> Tensor:
        """SNR(t) = alpha_t^2 / sigma_t^2, (T,)."""
        return (self.alpha / self.sigma).square()

    def to(self, device: torch.device) -> "Objective":
        """Move the tables, so that no step copies them; returns a new objective."""
        moved = object.__new__(Objective)
        moved.__dict__.update(
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        )
        return moved

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Timesteps (B,) for numbers (B,) that are uniform in [0, 1)."""
        if self.probabilities is None:
            return (uniform * self.num_train_timesteps).long()
        cumulative = self.probabilities.double().cumsum(0)
        found = torch.searchsorted(cumulative, uniform.double() * cumulative[-1], right=True)
        return found.clamp(max=self.num_train_timesteps - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of latents (B, C, h, w), noise of their shape and timesteps (B,)."""
        return _at(self.alpha, timesteps) * latents + _at(self.sigma, timesteps) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser has to predict, (B, C, h, w)."""
        return _at(self.a, timesteps) * latents + _at(self.b, timesteps) * noise

    def weight(self, timesteps: Tensor) -> Tensor:
        """Weight of each sample's loss, (B,)."""
        return self.loss_weight[timesteps]

    def loss(
        self,
        denoiser: Denoiser,
        latents: Tensor,
        hidden_states: Tensor,
        timesteps: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Squared error of the prediction, mean over each sample's values, not weighted: (B,)."""
        noisy_latents = self.add_noise(latents, noise, timesteps)
        prediction = denoiser(noisy_latents, timesteps, hidden_states)
        target = self.target(latents, noise, timesteps)
        return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))


def _at(table: Tensor, timesteps: Tensor) -> Tensor:
    """Values of a table (T,) at timesteps (B,), broadcast over (B, C, h, w)."""
    return table[timesteps].view(-1, 1, 1, 1)
