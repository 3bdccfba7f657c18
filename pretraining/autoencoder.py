"""Train a small f8 AutoencoderKL on faces, of the same form as Stable Diffusion's.

Shapes: N images, B batch, S pixels along a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from custom_datasets.celeba_hq_dataset import to_model_range
from models.device import autocast, choose_precision
from pretraining.progress import Progress, learning_rate_at, steps_for

BATCH = 32  # images encoded at a time where none is trained


@dataclass(frozen=True)
class AutoencoderSettings:
    """Size and training of the autoencoder; the defaults made the demo's."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    latent_channels: int = 8  # with 4, mouths and glasses of 64 px faces are lost
    minutes: float = 20.0
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    square_weight: float = 5.0
    kl_weight: float = 5e-4
    edge_weight: float = 0.5
    seed: int = 0


def build_autoencoder(settings: AutoencoderSettings, image_size: int) -> AutoencoderKL:
    """Four resolutions, hence one latent position for 8x8 pixels."""
    levels = len(settings.widths)
    return AutoencoderKL(
        block_out_channels=settings.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        sample_size=image_size,
    )


def edges(images: Tensor) -> Tensor:
    """Differences to the right and lower neighbour, (B, 6, S-1, S-1); they keep lines sharp."""
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    return torch.cat([right, down], dim=1)


def reconstruction_loss(
    autoencoder: AutoencoderKL, images: Tensor, settings: AutoencoderSettings
) -> Tensor:
    """L1 of pixels and of their edges, squared error, and the KL term, a mean over latents.

    Squares make few large errors count: a lost mouth is 20 pixels of 4,096.
    """
    posterior = autoencoder.encode(images).latent_dist
    decoded = autoencoder.decode(posterior.sample()).sample.float()
    pixels = F.l1_loss(decoded, images) + settings.square_weight * F.mse_loss(decoded, images)
    pixels = pixels + settings.edge_weight * F.l1_loss(edges(decoded), edges(images))
    return pixels + settings.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()


def train_autoencoder(
    images: Tensor,
    settings: AutoencoderSettings,
    device: torch.device,
    start: AutoencoderKL | None = None,
) -> Iterator[Progress]:
    """Train on uint8 images (N, 3, S, S) for the given minutes, from `start` or random weights."""
    torch.manual_seed(settings.seed)
    model = start or build_autoencoder(settings, images.shape[-1])
    model = model.requires_grad_(True).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    precision = choose_precision("auto", device)
    for step, done in steps_for(settings.minutes):
        optimizer.param_groups[0]["lr"] = learning_rate_at(settings.learning_rate, step, done)
        chosen = torch.randint(len(images), (settings.batch_size,))
        batch = to_model_range(images[chosen]).to(device, memory_format=torch.channels_last)
        with autocast(precision, device):
            loss = reconstruction_loss(model, batch.flip(-1) if step % 2 else batch, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield Progress(model, step + 1, {"loss": loss.item()}, done)


@torch.no_grad()
def set_scaling_factor(autoencoder: AutoencoderKL, images: Tensor) -> float:
    """Write 1 / std of the latents of uint8 images (N, 3, S, S) into the model's config, so that
    scaled latents have unit variance (Rombach et al. 2022, appendix G).
    """
    device = next(autoencoder.parameters()).device
    latents = [
        autoencoder.encode(to_model_range(batch).to(device)).latent_dist.mode()
        for batch in images.split(BATCH)
    ]
    factor = round(1 / torch.cat(latents).std().item(), 5)
    autoencoder.register_to_config(scaling_factor=factor)
    return factor
