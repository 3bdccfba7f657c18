"""How near faces that went through an autoencoder come to the faces themselves."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from custom_datasets.celeba_hq_dataset import to_model_range
from models.device import autocast, choose_precision
from models.vae_wrapper import VAEWrapper

BATCH = 16  # faces at a time


@torch.no_grad()
def measure(vae: VAEWrapper, images: Tensor, pictures: Tensor) -> dict[str, float]:
    """Compare reconstructions with real faces, in sampling's precision.

    Args:
        images: what is encoded, uint8 (N, 3, S, S).
        pictures: what should come out, uint8 (N, 3, H, H); reconstructions that are smaller are
            enlarged (bicubic).

    Returns:
        PSNR in dB over all images, and the ratio of `detail_energy`, decoded to real: 1 is as sharp
        as real faces, less is blurred, more is grainy.
    """
    device = next(vae.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64)
    for some, real in zip(images.split(BATCH), pictures.split(BATCH), strict=True):
        real = real.to(device) / 255
        decoded = enlarge(reconstruct(vae, some.to(device)), real.shape[-1])
        values = ((decoded - real).square(), detail_energy(decoded), detail_energy(real))
        sums += len(real) * torch.stack([value.mean().double().cpu() for value in values])
    error, decoded_detail, real_detail = (sums / len(images)).tolist()
    return {"psnr_db": -10 * math.log10(error), "detail_ratio": decoded_detail / real_detail}


@torch.no_grad()
def reconstruct(vae: VAEWrapper, images: Tensor) -> Tensor:
    """Images uint8 (B, 3, S, S) through an autoencoder, in sampling's precision: float
    (B, 3, H, H) in [0, 1].
    """
    with autocast(choose_precision("auto", images.device), images.device):
        return vae.decode(vae.encode(to_model_range(images)).mean)


def enlarge(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] at another size; the same where they have it."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def detail_energy(images: Tensor) -> Tensor:
    """Mean square of what each image (B, C, H, W) loses when it is halved, (B,): detail of one or
    two pixels, the finest band of a Laplacian pyramid (Burt & Adelson 1983).
    """
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    return (images - coarse).square().mean(dim=(1, 2, 3))
