"""The faces that frozen models are made from: a fair choice of them, in memory where they fit."""

from pathlib import Path

import numpy as np
from torch import Tensor

from config import ROOT
from custom_datasets.celeba_hq_dataset import CelebAHQ, Images
from custom_datasets.drawn_faces import write_drawn_faces

DRAWN_COUNTS = (12_000, 100, 500)
DRAWN_SEED = 1  # another than the demo's
MOST_IN_MEMORY = 2**31  # bytes


def open_splits(folder: Path | None, image_size: int) -> tuple[CelebAHQ, CelebAHQ]:
    """The train and the test faces of a folder; None: drawn ones, at 128 px."""
    if folder is None:
        folder = ROOT / "data" / "drawn_faces_for_pretraining"
        write_drawn_faces(folder, DRAWN_COUNTS, size=128, seed=DRAWN_SEED)
    return CelebAHQ(folder, "train", image_size), CelebAHQ(folder, "test", image_size)


def open_images(faces: CelebAHQ) -> Tensor | Images:
    """The images of all faces, uint8 (N, 3, S, S): in memory up to 2 GiB, else read on access.

    Both are indexed by an array of positions.
    """
    in_bytes = len(faces) * 3 * faces.image_size**2
    return faces.all_images() if in_bytes <= MOST_IN_MEMORY else faces.images()


def choose(count: int, most: int, seed: int = 0) -> np.ndarray:
    """Positions of up to `most` of `count` faces, int (n,), in an order that the seed decides.

    The first ones would be another population: copies of CelebA-HQ may be sorted.
    """
    return np.random.default_rng(seed).permutation(count)[:most]
