"""The faces that frozen models are made from, and a fair choice of them."""

from pathlib import Path

import numpy as np

from config import ROOT
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.drawn_faces import write_drawn_faces

DRAWN_COUNTS = (12_000, 100, 500)
DRAWN_SEED = 1  # another than the demo's


def open_splits(folder: Path | None, image_size: int) -> tuple[CelebAHQ, CelebAHQ]:
    """The train and the test faces of a folder; None: drawn ones, at 128 px."""
    if folder is None:
        folder = ROOT / "data" / "drawn_faces_for_pretraining"
        write_drawn_faces(folder, DRAWN_COUNTS, size=128, seed=DRAWN_SEED)
    return CelebAHQ(folder, "train", image_size), CelebAHQ(folder, "test", image_size)


def choose(count: int, max_count: int, seed: int = 0) -> np.ndarray:
    """Up to `max_count` of the numbers below `count`, int (n,), in an order that the seed decides.

    The first faces of a folder would be another population: copies of CelebA-HQ may be sorted.
    """
    return np.random.default_rng(seed).permutation(count)[:max_count]
