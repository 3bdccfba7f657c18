"""Fine-tune the decoder of a frozen autoencoder on faces.

The encoder, and so every latent, stays the same to the bit: a diffusion model that was trained on
the latents draws with the new decoder at once. `stabilityai/sd-vae-ft-mse` came about in this way.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from custom_datasets.celeba_hq_dataset import Images, to_model_range
from custom_datasets.latent_cache import LatentSource
from models.device import autocast, freed_memory_kept, has_bfloat16
from models.vae_wrapper import VAEWrapper
from pretraining.adversary import BETAS, Adversary
from pretraining.progress import Clock, Progress, learning_rate_at
from pretraining.sharpness import reconstruction_loss
from settings import Section, setting

RISE = 0.1  # share of the time in which the discriminators' weight rises from zero


@dataclass(frozen=True)
class DecoderConfig(Section):
    """How a decoder is fine-tuned."""

    minutes: float = setting(20.0, above=0)
    batch_size: int = setting(8, least=1)
    learning_rate: float = setting(4e-4, above=0)  # of the decoder and of the discriminators
    pyramid_weight: float = setting(1.0, least=0)  # of the Laplacian bands, beside the pixels' L1
    # Of deceiving the discriminators and of matching their features (`adversary.Adversary`); both
    # 0: regression alone.
    adversarial_weight: float = setting(0.1, least=0)
    matching_weight: float = setting(2.0, least=0)
    # Share of the time after which the decoder heeds them; they learn from the start.
    adversarial_from: float = setting(0.1, least=0, most=1)
    ema_decay: float = setting(0.998, least=0, most=1)  # ceiling of 1 - (1 + step)^-3/4
    # Blocks of each level, coarsest first, where an AutoencoderTiny has fewer: on coarse levels
    # they cost little, and see the whole face. An AutoencoderKL keeps its own.
    least_blocks: tuple[int, ...] = setting((9, 6, 4, 2, 1), least=0)
    seed: int = setting(0, least=0)


def train_decoder(
    vae: VAEWrapper,
    latents: LatentSource,
    pictures: Tensor | Images,
    config: DecoderConfig,
    device: torch.device,
) -> Iterator[Progress]:
    """Train the decoder for the given minutes; yields the autoencoder with its averaged weights.

    Args:
        vae: stays as it is; a copy is trained.
        latents: of N faces, each as it is and mirrored.
        pictures: the same faces as they shall be drawn, uint8 (N, 3, S, S).
    """
    torch.manual_seed(config.seed)
    rng, clock = np.random.default_rng(config.seed), Clock(config.minutes)
    training, done = _Training(vae, config, device), 0.0
    with freed_memory_kept(device):
        while done < 1:
            positions = rng.integers(len(latents), size=config.batch_size)
            flipped = rng.random(config.batch_size) < 0.5
            posterior = latents.fetch(positions, flipped)
            batch = posterior.sample(torch.randn_like(posterior.mean)).to(device)
            real = to_model_range(pictures[positions].to(device))
            mirrored = torch.as_tensor(flipped, device=device).view(-1, 1, 1, 1)
            real = torch.where(mirrored, real.flip(-1), real)
            losses, done = training.take_step(batch, real, done), clock.done()
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
        channels = vae.latent_channels
        self.adversary = Adversary(channels, config.learning_rate, device, self.precision)

    def take_step(self, latents: Tensor, real: Tensor, done: float) -> dict[str, float]:
        """One update of decoder and average, and of the discriminators."""
        config = self.config
        rate = learning_rate_at(config.learning_rate, self.step, done)
        with autocast(self.precision, latents.device):
            drawn = self.vae.draw(latents)
        loss = reconstruction_loss(drawn, real, config.pyramid_weight)
        losses = {"loss": loss.item()}
        if config.adversarial_weight or config.matching_weight:
            losses["discriminator"], seen = self.adversary.learn(real, drawn, latents, rate)
            rise = min(1.0, (done - config.adversarial_from) / RISE)
            if rise >= 0:
                deceived, matched = self.adversary.losses(drawn, latents, seen)
                theirs = config.adversarial_weight * deceived + config.matching_weight * matched
                loss = loss + rise * theirs
        self._update(loss, rate)
        return losses

    def _update(self, loss: Tensor, rate: float) -> None:
        """average += w (weights - average), with the weight of `training.state`."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
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
