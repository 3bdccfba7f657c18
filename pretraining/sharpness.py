"""How near a drawn picture comes to the real one, band by band of the Laplacian pyramid.

Computed from pixels alone: no network is asked.
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
