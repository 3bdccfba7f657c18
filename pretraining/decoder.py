"""Fine-tune the decoder of a frozen autoencoder on faces.

The encoder, and so every latent, stays the same to the bit: a diffusion model that was trained on
the latents decodes with the new decoder at once. `stabilityai/sd-vae-ft-mse` was made in this way.

Shapes: N faces, B of a batch, M sampled latents, (C, h, w) a latent.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Section, setting
from custom_datasets.celeba_hq_dataset import to_model_range
from models.device import autocast, freed_memory_kept, has_bfloat16, tune_kernels
from models.vae_wrapper import VAEWrapper
from pretraining.adversary import Adversary, Perception, perceptual_distance
from pretraining.common import learning_rate_at, report, steps_for

RISE = 0.1  # share of the time in which the adversary's weight rises from zero
BETAS = (0.9, 0.99)  # of AdamW
KEPT_NORM = 0.9  # of the running means of gradients' norms, a step
EMA_DECAY = 0.998  # ceiling of 1 - (1 + step)^-3/4
PERCEPTUAL_WEIGHT = 1.0  # in multiples of the pixels' L1
SAMPLED_SHARE = 0.5  # latents of a diffusion model in a batch, added to `batch_size`


@dataclass(frozen=True)
class DecoderConfig(Section):
    """How a decoder is fine-tuned."""

    minutes: float = setting(20.0, above=0)
    batch_size: int = setting(8, min=1)
    learning_rate: float = setting(4e-4, above=0)
    # Of the discriminators. Where they win by far, the decoder learns nothing from them.
    discriminator_learning_rate: float = setting(2e-4, above=0)
    # How strongly the adversary pulls at the pictures, in multiples of the pixels' L1.
    adversarial_weight: float = setting(4.0, min=0)
    # Share of the time after which the decoder heeds the adversary, which learns from the start.
    adversarial_from: float = setting(0.1, min=0, max=1)


def train_decoder(
    vae: VAEWrapper,
    images: Tensor,
    pictures: Tensor,
    config: DecoderConfig,
    device: torch.device,
    sampled: Tensor | None = None,
) -> Iterator["DecoderTraining"]:
    """Train the decoder for the given minutes; yields the state after each step.

    Args:
        vae: stays as it is; a copy is trained.
        images: what is encoded, uint8 (N, 3, S, S).
        pictures: the same faces as they should be decoded, uint8 (N, 3, H, H).
        sampled: latents (M, C, h, w) of a diffusion model. No picture belongs to them: only the
            adversary sees what the decoder makes of them.
    """
    torch.manual_seed(0)
    tune_kernels(device)
    training = DecoderTraining(vae, config, device)
    count = round(SAMPLED_SHARE * config.batch_size)
    with freed_memory_kept(device):
        for step, done in steps_for(config.minutes):
            chosen = torch.randint(len(images), (config.batch_size,))
            small, real = (_load(faces[chosen], step, device) for faces in (images, pictures))
            posterior = training.vae.encode(small)
            latents = posterior.sample(torch.randn_like(posterior.mean))  # (B, C, h, w)
            if sampled is not None:
                others = sampled[torch.randint(len(sampled), (count,))].float().to(device)
                latents = torch.cat([latents, others])  # (B + S, C, h, w)
            training.take_step(latents, real, done)
            report(step, done, training.losses)
            yield training


def _load(images: Tensor, step: int, device: torch.device) -> Tensor:
    """uint8 -> float in [-1, 1] on the device, mirrored at every second step."""
    return to_model_range((images.flip(-1) if step % 2 else images).to(device))


class DecoderTraining:
    """What a training changes: decoder, average, optimiser and adversary.

    Its result is `averaged`, the autoencoder with the averaged weights of its decoder.
    """

    def __init__(self, vae: VAEWrapper, config: DecoderConfig, device: torch.device) -> None:
        # float16 is left out: it would need a scaled loss.
        self.precision = "bf16" if has_bfloat16(device) else "no"
        self.config, self.step = config, 0
        self.vae, self.averaged = (copy.deepcopy(vae).to(device) for _ in range(2))
        self.weights = decoder_weights(self.vae)
        self.averages = decoder_weights(self.averaged)
        for weight in self.weights:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.weights, betas=BETAS)
        self.perception = Perception().to(device, memory_format=torch.channels_last)
        self.adversary = Adversary(device, self.precision)
        self.norms: dict[str, Tensor] = {}  # running means, of each loss's gradient
        self.losses: dict[str, Tensor] = {}  # of the last step

    def take_step(self, latents: Tensor, real: Tensor, done: float) -> None:
        """One update of decoder and average, and of the discriminators.

        Args:
            latents: (B + S, C, h, w), of which the first B belong to the pictures.
            real: (B, 3, H, H) in [-1, 1].
        """
        config = self.config
        rise = min(1.0, max(0.0, (done - config.adversarial_from) / RISE))
        weights = (1.0, PERCEPTUAL_WEIGHT, rise * config.adversarial_weight)
        pulls = dict(zip(("pixels", "perceptual", "adversarial"), weights, strict=True))
        with autocast(self.precision, latents.device):
            decoded = self.vae.decode_unclamped(latents)
        pictures = decoded.detach().requires_grad_(True)
        losses = self._losses(pictures, real, done)
        decoded.backward(self._balanced(losses, pulls, pictures, len(real)))
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        self._update(done)

    def _losses(self, decoded: Tensor, real: Tensor, done: float) -> dict[str, Tensor]:
        """Every loss of the pictures; the discriminators take a step on the way."""
        with autocast(self.precision, real.device):
            wanted, seen = self.perception(real), self.perception(decoded)
        paired = [features[: len(real)] for features in seen]
        rate = learning_rate_at(self.config.discriminator_learning_rate, self.step, done)
        return {
            "pixels": F.l1_loss(decoded[: len(real)], real),
            "perceptual": perceptual_distance(paired, wanted),
            "discriminator": self.adversary.learn(wanted, seen, rate),
            "adversarial": self.adversary.loss(seen),
        }

    def _balanced(
        self, losses: dict[str, Tensor], pulls: dict[str, float], pictures: Tensor, paired: int
    ) -> Tensor:
        """The gradient that the pictures pass on: each loss's, brought to the pixels' norm and then
        weighted (Esser et al. 2021, "Taming Transformers", equation 7, at the pictures).
        """
        total = torch.zeros_like(pictures)
        for name in [name for name, pull in pulls.items() if pull]:
            (gradient,) = torch.autograd.grad(losses[name], pictures, retain_graph=True)
            norm = gradient[:paired].norm()
            norm = self.norms[name] = self.norms.get(name, norm).lerp(norm, 1 - KEPT_NORM)
            total += pulls[name] * self.norms["pixels"] / (norm + 1e-12) * gradient
        return total

    def _update(self, done: float) -> None:
        """One step of the optimiser, and average += w (weights - average)."""
        rate = learning_rate_at(self.config.learning_rate, self.step, done)
        self.optimizer.param_groups[0]["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        weight = max((1 + self.step) ** -0.75, 1 - EMA_DECAY)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, weight)


def decoder_weights(vae: VAEWrapper) -> list[nn.Parameter]:
    """The weights that turn latents into pictures, and nothing else."""
    parts = (vae.autoencoder.decoder, getattr(vae.autoencoder, "post_quant_conv", None))
    return [weight for part in parts if part is not None for weight in part.parameters()]
