"""Train a small f8 AutoencoderKL on faces, of the same form as Stable Diffusion's.

Shapes: N images, B batch, S pixels along a side.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from custom_datasets.celeba_hq_dataset import to_model_range
from models.device import choose_device
from models.vae_wrapper import VAEWrapper
from pretraining.common import BATCH, MEASURED, choose, descend, measure, open_splits

WIDTHS = (16, 32, 64, 128)
LATENT_CHANNELS = 8  # with 4, mouths and glasses of 64 px faces are lost
BATCH_SIZE, LEARNING_RATE = 32, 1.5e-3
# A few large errors have to count: a lost mouth is 20 pixels of 4,096.
SQUARE_WEIGHT, EDGE_WEIGHT, KL_WEIGHT = 5.0, 0.5, 5e-4


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and measure an autoencoder."""
    train, test = open_splits(arguments.faces, arguments.image_size)
    images, held_out = train.images(), test.images()
    model = train_autoencoder(images, arguments.minutes, choose_device())
    factor = set_scaling_factor(model, images[choose(len(images), MEASURED)])
    facts = measure(VAEWrapper(model), held_out, held_out)
    model.half().save_pretrained(arguments.out)  # still more precise than it is
    return facts | {"scaling_factor": factor}


def build_autoencoder(image_size: int) -> AutoencoderKL:
    """Four resolutions, hence one latent position for 8x8 pixels."""
    return AutoencoderKL(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=image_size,
    )


def edges(images: Tensor) -> Tensor:
    """Differences to the right and lower neighbour, (B, 6, S-1, S-1); they keep lines sharp."""
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    return torch.cat([right, down], dim=1)


def reconstruction_loss(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """L1 of pixels and of their edges, squared error, and the KL term, a mean over latents."""
    posterior = autoencoder.encode(images).latent_dist
    decoded = autoencoder.decode(posterior.sample()).sample.float()
    pixels = F.l1_loss(decoded, images) + SQUARE_WEIGHT * F.mse_loss(decoded, images)
    pixels = pixels + EDGE_WEIGHT * F.l1_loss(edges(decoded), edges(images))
    return pixels + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def train_autoencoder(images: Tensor, minutes: float, device: torch.device) -> AutoencoderKL:
    """Train on uint8 images (N, 3, S, S) from random weights."""
    torch.manual_seed(0)
    model = build_autoencoder(images.shape[-1]).to(device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        chosen = images[torch.randint(len(images), (BATCH_SIZE,))]
        batch = to_model_range(chosen.flip(-1) if step % 2 else chosen)
        batch = batch.to(device, memory_format=torch.channels_last)
        return reconstruction_loss(model, batch)

    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99))
    descend(loss, optimizer, LEARNING_RATE, minutes, device)
    return model.eval()


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
