"""What the tests of feature networks share: a CLIP of no size, and pictures to show it."""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from pretraining.clip import build_image_processor

SIDE = 64  # pixels that the tiny CLIP of conftest takes


def random_images(n: int, size: int, seed: int = 0) -> Tensor:
    """Coloured blobs with fine grain, uint8 (n, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size)
    images = 0.8 * coarse + 0.2 * torch.rand(n, 3, size, size, generator=generator)
    return (images * 255).to(torch.uint8)


def with_image_preparation(clip_folder: Path, folder: Path) -> Path:
    """A copy of a CLIP's folder that also says how its images are prepared."""
    shutil.copytree(clip_folder, folder, dirs_exist_ok=True)
    build_image_processor(SIDE).save_pretrained(folder)
    return folder
