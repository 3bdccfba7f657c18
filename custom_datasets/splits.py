"""Which faces are trained on: train, val and test.

CelebA is divided by identity: no person is on both sides. Only faces that are recognised as
CelebA-HQ's have this split; others have that of their folders or of the hub's data set, or one by
chance, which may put photographs of one person on both sides.

CelebA-HQ holds the same photograph under two indices 334 times
(`recognition/same_photograph.csv`), 16 times in train and in val or test. These 16 held-out faces
belong to no split.
"""

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

SPLITS = ("train", "val", "test")
NO_SPLIT = len(SPLITS)
SPLIT_KINDS = {
    "identity": "CelebA's own, by identity: no person is on both sides",
    "chance": "by chance: photographs of one person may be on both sides",
    "drawn": "drawn faces, each of them another",
    "own": "the data's own",
}
_NUMBERS = {"train": 0, "training": 0, "test": 2, "testing": 2} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), 1
)
HELD_OUT_SHARE = 0.1  # of faces that are divided by chance, for val, and as many for test
ENOUGH, MAX_SHARE = 40, 0.2  # faces that an evaluation compares with, where a fifth is as many
_HERE = Path(__file__).parent


@cache
def official_split() -> np.ndarray:
    """The split of the 30,000 official indices: uint8 (30000,), 0 train, 1 val, 2 test; 3 are the
    16 held-out faces whose photograph is also in train.

    It is CelebA's partition through the CelebA-HQ mapping.
    """
    text = (_HERE / "celeba_hq_split.txt").read_text()
    return np.frombuffer("".join(text.split()).encode(), dtype=np.uint8) - ord("0")


def is_split_name(name: str) -> bool:
    """Whether a folder or a part of a data set is named as a split is, such as "validation"."""
    return name.lower() in _NUMBERS


def named_splits(names: Sequence[str]) -> np.ndarray | None:
    """The splits, uint8 (N,), of faces whose folders or parts are named so, such as "validation";
    None where one has another name, or all have the same.
    """
    splits = [_NUMBERS.get(name.lower()) for name in names]
    if None in splits or len(set(splits)) < 2:
        return None
    return np.array(splits, dtype=np.uint8)


def split_by_chance(names: Sequence[str]) -> np.ndarray:
    """Ten percent of the faces for val, ten for test, the same on every machine; up to 40, which an
    evaluation needs, a fifth.

    The share never grows with the data, so that pictures which are added later turn none that was
    trained on into a held-out one, but for a few at the border.
    """
    digests = [sha256(f"split/{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=digests.__getitem__)
    few = min(ENOUGH, round(MAX_SHARE * len(names)))
    held_out = max(1, few, round(HELD_OUT_SHARE * len(names)))
    splits = np.zeros(len(names), dtype=np.uint8)
    splits[order[:held_out]], splits[order[held_out : 2 * held_out]] = 1, 2
    return splits
