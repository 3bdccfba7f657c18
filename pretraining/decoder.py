"""Fine-tune the decoder of a frozen autoencoder on faces.

The encoder, and so every latent, stays the same to the bit: a diffusion model that was trained on
the latents decodes with the new decoder at once. `stabilityai/sd-vae-ft-mse` was made in this way.

Shapes: N faces, B of a batch, M sampled latents, S of them in a batch, (C, h, w) a latent.
"""

import argparse
import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom_datasets.celeba_hq_dataset import to_model_range
from models.decoder import is_alone, open_beside, rounded_encoder, save_decoder_alone
from models.device import (
    autocast,
    choose_device,
    freed_memory_kept,
    tune_kernels,
    unscaled_precision,
)
from models.loading import locate
from models.vae_wrapper import VAEWrapper
from pretraining.adversary import Adversary, Perception, perceptual_distance
from pretraining.common import (
    MEASURED,
    choose,
    learning_rate_at,
    measure,
    open_splits,
    report,
    steps_for,
)
from pretraining.decoder_config import DecoderConfig
from pretraining.growing import grown

RISE = 0.1  # share of the time in which the decoder's learning rate rises from zero
BETAS = (0.9, 0.99)  # of AdamW
KEPT_NORM = 0.9  # of the running means of gradients' norms, a step
EMA_DECAY = 0.998  # ceiling of 1 - (1 + step)^-3/4
PULLS = {"pixels": 1.0, "perceptual": 1.0}  # beside the adversary's, see `balanced`
SAMPLED_SHARE = 0.5  # latents of a diffusion model in a batch, added to `batch_size`


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a decoder, save it without its encoder, and measure it on held-out faces.

    Raises:
        ImportError: see `Perception`.
        ValueError: the autoencoder, the sizes, the latents or the faces do not fit each other.
    """
    size, out, device = arguments.image_size, arguments.out, choose_device()
    Perception()  # where its packages are missing, say so before the faces are read
    autoencoder, before = open_start(arguments.source, arguments.autoencoder, out)
    own_size = size // before.downsampling * before.upsampling
    picture_size = arguments.picture_size or own_size
    start = grown(before, size, picture_size)
    sampled = read_latents(arguments.sampled, before, size) if arguments.sampled else None
    small, large = (open_splits(arguments.faces, pixels) for pixels in (size, picture_size))
    faces = small[0].images(), large[0].images()
    *_, last = train_decoder(start, *faces, arguments.config, device, sampled)
    save_decoder_alone(last.averaged, out)
    shown = choose(len(small[1]), MEASURED)
    held_out = small[1].images(shown), large[1].images(shown)
    return {
        "image_size": size,
        "picture_size": picture_size,
        "encoder": rounded_encoder(autoencoder),
        "settings": asdict(arguments.config),
        "steps": last.number,
        "measured_on": f"{len(shown)} faces of the test split, in a random order",
        "before": measure(before.to(device), *held_out),
        "after": measure(open_beside(str(out), autoencoder).to(device), *held_out),
    }


def open_start(source: str, autoencoder: str | None, out: Path) -> tuple[VAEWrapper, VAEWrapper]:
    """The autoencoder of the latents, and the same with the decoder to start from.

    Raises:
        ValueError: a decoder without its autoencoder, or one that would be overwritten.
    """
    originals = [Path(locate(name)).resolve() for name in (source, autoencoder) if name]
    if out.resolve() in originals:
        raise ValueError(f"--out {out} is an original, which would be lost; name another folder")
    name = autoencoder if is_alone(source) else source
    if not name:
        raise ValueError(f"{source} holds no encoder: name its autoencoder with --autoencoder")
    whole = VAEWrapper.from_pretrained(name)
    return whole, open_beside(source, whole)


def read_latents(file: Path, vae: VAEWrapper, image_size: int) -> Tensor:
    """Latents (M, C, h, w) that `pretraining.latents` sampled.

    Raises:
        ValueError: they do not have the shape of this autoencoder's, or are not finite.
    """
    latents, side = torch.from_numpy(np.load(file)), image_size // vae.downsampling
    shape = (vae.latent_channels, side, side)
    if latents.shape[1:] != shape or not len(latents) or not latents.isfinite().all():
        raise ValueError(f"--sampled {file} holds {tuple(latents.shape)}, not finite (M, *{shape})")
    return latents


# --- training ---


class DecoderStep(NamedTuple):
    """One finished step."""

    number: int  # counts from 1
    losses: dict[str, Tensor]
    averaged: VAEWrapper  # with the averaged weights of its decoder, which are the result


def train_decoder(
    vae: VAEWrapper,
    images: Tensor,
    pictures: Tensor,
    config: DecoderConfig,
    device: torch.device,
    sampled: Tensor | None = None,
) -> Iterator[DecoderStep]:
    """Train the decoder for the given minutes; yields after each step.

    Args:
        vae: stays as it is; a copy is trained.
        images: what is encoded, uint8 (N, 3, S, S).
        pictures: the same faces as they should be decoded, uint8 (N, 3, H, H).
        sampled: latents (M, C, h, w) of a diffusion model. No picture belongs to them: only the
            adversary sees what the decoder makes of them.
    """
    torch.manual_seed(0)
    tune_kernels(device)
    precision = unscaled_precision(device)
    trained, averaged = (copy.deepcopy(vae).to(device) for _ in range(2))
    weights, averages = decoder_weights(trained), decoder_weights(averaged)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, betas=BETAS)
    perception = Perception().to(device, memory_format=torch.channels_last)
    adversary = Adversary(device, precision)
    norms: dict[str, Tensor] = {}

    # A function, so that a step's graphs are freed before the next step makes its own.
    def take_step(step: int, done: float) -> dict[str, Tensor]:
        """The losses of a step, without their graphs."""
        # A batch: B faces, and S latents without faces.
        chosen = torch.randint(len(images), (config.batch_size,))
        small, real = (_load(faces[chosen], step, device) for faces in (images, pictures))
        posterior = trained.encode(small)
        latents = posterior.sample(torch.randn_like(posterior.mean))  # (B, C, h, w)
        if sampled is not None:
            count = round(SAMPLED_SHARE * config.batch_size)
            others = sampled[torch.randint(len(sampled), (count,))].float().to(device)
            latents = torch.cat([latents, others])  # (B + S, C, h, w)

        # What the losses make of the pictures; the discriminators take a step on the way.
        is_waiting = done < config.adversarial_from
        with autocast(precision, device), torch.set_grad_enabled(not is_waiting):
            decoded = trained.decode_unclamped(latents)
            shown = decoded.detach().requires_grad_(not is_waiting)
            wanted, seen = perception(real), perception(shown)
        rate = learning_rate_at(config.discriminator_learning_rate, step, done)
        losses = {"discriminator": adversary.learn(wanted, seen, rate)}
        # They start from random weights: until they can judge, the decoder waits.
        if is_waiting:
            return losses
        losses |= {
            "pixels": F.l1_loss(shown[: len(real)], real),
            "perceptual": perceptual_distance([part[: len(real)] for part in seen], wanted),
            "adversarial": adversary.loss(seen),
        }

        # Backward, clip, update, and average += w (weights - average).
        pulls = PULLS | {"adversarial": config.adversarial_weight}
        decoded.backward(balanced(losses, pulls, shown, len(real), norms))
        rise = min(1.0, (done - config.adversarial_from) / RISE)
        rate = rise * learning_rate_at(config.learning_rate, step, done)
        optimizer.param_groups[0]["lr"] = rate
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, max((2 + step) ** -0.75, 1 - EMA_DECAY))
        return {name: loss.detach() for name, loss in losses.items()}

    with freed_memory_kept(device):
        for step, done in steps_for(config.minutes):
            losses = take_step(step, done)
            report(step, done, losses)
            yield DecoderStep(step + 1, losses, averaged)


def _load(images: Tensor, step: int, device: torch.device) -> Tensor:
    """uint8 -> float in [-1, 1] on the device, mirrored at every second step."""
    return to_model_range((images.flip(-1) if step % 2 else images).to(device))


def balanced(
    losses: Mapping[str, Tensor],
    pulls: Mapping[str, float],
    pictures: Tensor,
    paired: int,
    norms: dict[str, Tensor],
) -> Tensor:
    """The gradient that the pictures pass on: each loss's, brought to the pixels' norm and then
    weighted (Esser et al. 2021, "Taming Transformers", equation 7, at the pictures).

    Args:
        pulls: weights; the first is that of "pixels".
        paired: pictures with a face, over which norms are taken.
        norms: running means of the norms, which change.
    """
    total = torch.zeros_like(pictures)
    for name in [name for name, pull in pulls.items() if pull]:
        (gradient,) = torch.autograd.grad(losses[name], pictures, retain_graph=True)
        norm = gradient[:paired].norm()
        norm = norms[name] = norms.get(name, norm).lerp(norm, 1 - KEPT_NORM)
        total += pulls[name] * norms["pixels"] / (norm + 1e-12) * gradient
    return total


def decoder_weights(vae: VAEWrapper) -> list[nn.Parameter]:
    """The weights that turn latents into pictures, and nothing else."""
    parts = (vae.autoencoder.decoder, getattr(vae.autoencoder, "post_quant_conv", None))
    return [weight for part in parts if part is not None for weight in part.parameters()]
