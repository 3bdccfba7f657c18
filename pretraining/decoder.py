"""Fine-tune the decoder of a frozen autoencoder on faces.

The encoder, and so every latent, stays the same to the bit: a diffusion model that was trained on
the latents draws with the new decoder at once. `stabilityai/sd-vae-ft-mse` came about in this way.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Section, setting
from custom_datasets.celeba_hq_dataset import Images, to_model_range
from custom_datasets.latent_cache import LatentSource
from models.device import autocast, freed_memory_kept, has_bfloat16, tune_kernels
from models.vae_wrapper import VAEWrapper
from pretraining.adversary import Adversary
from pretraining.perception import Perception, perceptual_distance
from pretraining.progress import Clock, Progress, learning_rate_at

RISE = 0.1  # share of the time in which the adversary's weight rises from zero
BETAS = (0.9, 0.99)  # of AdamW
REMEMBERED = 0.9  # of the running means of gradients' norms, a step


@dataclass(frozen=True)
class DecoderConfig(Section):
    """How a decoder is fine-tuned."""

    minutes: float = setting(20.0, above=0)
    batch_size: int = setting(8, min=1)
    learning_rate: float = setting(4e-4, above=0)
    # Of the discriminators. Where they win by far, the decoder learns nothing from them.
    discriminator_learning_rate: float = setting(2e-4, above=0)
    # How strongly a loss pulls at the pictures, in multiples of the pixels' L1; 0: not at all.
    perceptual_weight: float = setting(1.0, min=0)
    adversarial_weight: float = setting(4.0, min=0)
    # Share of the time after which the decoder heeds the adversary, which learns from the start.
    adversarial_from: float = setting(0.1, min=0, max=1)
    # Latents of a diffusion model in each batch, as a share of `batch_size` that is added to it.
    sampled_share: float = setting(0.5, min=0)
    ema_decay: float = setting(0.998, min=0, max=1)  # ceiling of 1 - (1 + step)^-3/4
    # Blocks of each level, coarsest first, where an AutoencoderTiny has fewer: on coarse levels
    # they cost little, and see the whole face. An AutoencoderKL keeps its own.
    least_blocks: tuple[int, ...] = setting((9, 6, 4, 2, 1), min=0)
    seed: int = setting(0, min=0)


def train_decoder(
    vae: VAEWrapper,
    latents: LatentSource,
    pictures: Tensor | Images,
    config: DecoderConfig,
    device: torch.device,
    sampled: Tensor | None = None,
) -> Iterator[Progress]:
    """Train the decoder for the given minutes; yields the autoencoder with its averaged weights.

    Args:
        vae: stays as it is; a copy is trained.
        latents: of N faces, each as it is and mirrored.
        pictures: the same faces as they shall be drawn, uint8 (N, 3, S, S).
        sampled: latents (M, C, h, w) that a diffusion model drew. No picture belongs to them: only
            the adversary sees what the decoder makes of them.
    """
    torch.manual_seed(config.seed)
    tune_kernels(device)
    rng, clock = np.random.default_rng(config.seed), Clock(config.minutes)
    training, done = _Training(vae, config, device), 0.0
    count = 0 if sampled is None else round(config.sampled_share * config.batch_size)
    with freed_memory_kept(device):
        while done < 1:
            positions = rng.integers(len(latents), size=config.batch_size)
            flipped = rng.random(config.batch_size) < 0.5
            posterior = latents.fetch(positions, flipped)
            batch = posterior.sample(torch.randn_like(posterior.mean))  # (B, C, h, w)
            if sampled is not None:
                others = sampled[rng.integers(len(sampled), size=count)].float()
                batch = torch.cat([batch, others])  # (B + S, C, h, w)
            real = to_model_range(pictures[positions].to(device))
            mirrored = torch.as_tensor(flipped, device=device).view(-1, 1, 1, 1)
            real = torch.where(mirrored, real.flip(-1), real)
            losses, done = training.take_step(batch.to(device), real, done), clock.done()
            yield Progress(training.averaged, training.step, losses, done)


class _Training:
    """What a training changes: decoder, average, optimiser and adversary."""

    def __init__(self, vae: VAEWrapper, config: DecoderConfig, device: torch.device) -> None:
        # float16 is left out: it would need a scaled loss.
        self.precision = "bf16" if has_bfloat16(device) else "no"
        self.config, self.step = config, 0
        self.vae, self.averaged = (copy.deepcopy(vae).to(device) for _ in range(2))
        self.weights = decoder_weights(self.vae)
        self.averages = decoder_weights(self.averaged)
        for weight in self.weights:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.weights, config.learning_rate, betas=BETAS)
        self.perception = Perception().to(device, memory_format=torch.channels_last)
        self.adversary = Adversary(device, self.precision)
        self.norms: dict[str, Tensor] = {}  # running means, of each loss's gradient

    def take_step(self, latents: Tensor, real: Tensor, done: float) -> dict[str, float]:
        """One update of decoder and average, and of the discriminators.

        Args:
            latents: (B + S, C, h, w), of which the first B belong to the pictures.
            real: (B, 3, H, W) in [-1, 1].
        """
        config = self.config
        rate = learning_rate_at(config.learning_rate, self.step, done)
        rise = min(1.0, max(0.0, (done - config.adversarial_from) / RISE))
        weights = (1.0, config.perceptual_weight, rise * config.adversarial_weight)
        with autocast(self.precision, latents.device):
            drawn = self.vae.decode_unclamped(latents)
        pictures = drawn.detach().requires_grad_(True)
        losses = self._losses(pictures, real, done)
        pulls = dict(zip(("pixels", "perceptual", "adversarial"), weights, strict=True))
        gradient = self._balanced(losses, pulls, pictures, len(real))
        self._update(drawn, gradient, rate)
        return {name: loss.item() for name, loss in losses.items()}

    def _losses(self, drawn: Tensor, real: Tensor, done: float) -> dict[str, Tensor]:
        """Every loss of the pictures; the discriminators take a step on the way."""
        rate = learning_rate_at(self.config.discriminator_learning_rate, self.step, done)
        losses = {"pixels": F.l1_loss(drawn[: len(real)], real)}
        with autocast(self.precision, real.device):
            wanted, seen = self.perception(real), self.perception(drawn)
        if self.config.perceptual_weight:
            paired = [features[: len(real)] for features in seen]
            losses["perceptual"] = perceptual_distance(paired, wanted)
        if self.config.adversarial_weight:
            losses["discriminator"] = self.adversary.learn(wanted, seen, rate)
            losses["adversarial"] = self.adversary.loss(seen)
        return losses

    def _balanced(
        self, losses: dict[str, Tensor], pulls: dict[str, float], pictures: Tensor, paired: int
    ) -> Tensor:
        """The gradient that the pictures pass on: each loss's, brought to the pixels' norm and then
        weighted (Esser et al. 2021, "Taming Transformers", equation 7, at the pictures).
        """
        total = torch.zeros_like(pictures)
        for name, pull in pulls.items():
            if pull == 0:
                continue
            (gradient,) = torch.autograd.grad(losses[name], pictures, retain_graph=True)
            norm = gradient[:paired].norm()
            norm = self.norms.setdefault(name, norm).lerp(norm, 1 - REMEMBERED)
            self.norms[name] = norm
            total += pull * self.norms["pixels"] / (norm + 1e-12) * gradient
        return total

    def _update(self, drawn: Tensor, gradient: Tensor, rate: float) -> None:
        """average += w (weights - average), with the weight of `training.state`."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        drawn.backward(gradient)
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        weight = max((1 + self.step) ** -0.75, 1 - self.config.ema_decay)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, weight)


def decoder_weights(vae: VAEWrapper) -> list[nn.Parameter]:
    """The weights that turn latents into pictures, and nothing else."""
    parts = (vae.autoencoder.decoder, getattr(vae.autoencoder, "post_quant_conv", None))
    return [weight for part in parts if part is not None for weight in part.parameters()]
