"""How near a drawn picture comes to the real one, band by band of the Laplacian pyramid.

Computed from pixels alone. No network is asked: one that judges pictures later would be flattered.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_datasets.celeba_hq_dataset import Images, to_model_range
from models.device import autocast, choose_precision
from models.vae_wrapper import VAEWrapper

BANDS = 4  # of the pyramid
LEAST_ENERGY = 1e-5  # below a grey level; keeps the root's gradient finite
BATCH = 16  # faces measured at a time


def laplacian_pyramid(images: Tensor, bands: int = BANDS) -> list[Tensor]:
    """Bands of detail, finest first, and the rest (Burt & Adelson 1983): (B, C, H / 2^i, W / 2^i).

    Band i is what an image loses when it is halved i + 1 times; together they are the image.
    """
    pyramid = []
    for _ in range(bands - 1):
        halved = F.avg_pool2d(images, 2)
        pyramid.append(images - _doubled(halved))
        images = halved
    return [*pyramid, images]


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


def reconstruction_loss(
    drawn: Tensor, real: Tensor, pyramid_weight: float, detail_weight: float
) -> Tensor:
    """Mean absolute error of pixels, of each band of the pyramid (Lap1 of Bojanowski et al. 2018),
    and of the local strength of detail in the two finest bands.

    The first two are least where a detail of unknown place is left out. The third asks only that as
    much of it be there as in the real picture: without it, detail falls by half in a minute.

    Args:
        drawn, real: (B, 3, H, W), both sides divisible by 2^(BANDS - 1).
    """
    bands = list(zip(laplacian_pyramid(drawn), laplacian_pyramid(real), strict=True))
    errors = sum(F.l1_loss(band, wanted) for band, wanted in bands)
    strengths = [(strength(band), strength(wanted)) for band, wanted in bands[:2]]
    detail = sum(F.l1_loss(found, wanted) for found, wanted in strengths)
    return F.l1_loss(drawn, real) + pyramid_weight * errors + detail_weight * detail


def strength(band: Tensor) -> Tensor:
    """Root mean square of a band (B, C, H, W) in windows of 8 positions: (B, 1, H/8, W/8)."""
    energy = F.avg_pool2d(band.square().mean(dim=1, keepdim=True), 8)
    return (energy + LEAST_ENERGY).sqrt()


def detail_energy(images: Tensor) -> Tensor:
    """Mean square of the finest band of each image, (B,): detail of one or two pixels."""
    return laplacian_pyramid(images, bands=2)[0].square().mean(dim=(1, 2, 3))


@torch.no_grad()
def measure(
    vae: VAEWrapper,
    images: Tensor | Images,
    pictures: Tensor | Images,
    positions: Sequence[int] | np.ndarray,
) -> dict[str, float]:
    """Compare faces through an autoencoder with the faces themselves, in sampling's precision.

    Pictures that are drawn smaller than the real ones are enlarged (bicubic).

    Args:
        images: what is encoded, uint8 (N, 3, S, S).
        pictures: what shall come out, uint8 (N, 3, H, H).
        positions: of the faces to measure; held-out ones.

    Returns:
        PSNR in dB; mean absolute error in levels of 0 to 255; and the ratio of `detail_energy`,
        drawn to real: 1 is as sharp as real faces, less is blurred, more is grainy.
    """
    device = next(vae.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(positions), BATCH):
        chosen = np.asarray(positions[start : start + BATCH])
        real = pictures[chosen].to(device) / 255
        drawn = enlarge(reconstructed(vae, images[chosen].to(device)), real.shape[-1])
        error = drawn - real
        values = (error.square(), error.abs(), detail_energy(drawn), detail_energy(real))
        sums += len(chosen) * torch.stack([value.mean().double().cpu() for value in values])
    square, absolute, drawn_detail, real_detail = (sums / len(positions)).tolist()
    return {
        "psnr_db": -10 * float(np.log10(square)),
        "absolute_error": 255 * absolute,
        "detail_ratio": drawn_detail / real_detail,
    }


@torch.no_grad()
def reconstructed(vae: VAEWrapper, images: Tensor) -> Tensor:
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
