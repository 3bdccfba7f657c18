"""Which faces are trained on: train, val and test, and how a copy of the data was divided.

CelebA is divided by identity: no person is on both sides. A copy that kept neither CelebA's file
names nor CelebA-HQ's indices can only be divided by chance, which leaks people. The kind of split
is stored with the data, so that an evaluation can say which it is.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePath

import numpy as np

import files
from custom_datasets.celeba_files import (
    MAPPING_FILE,
    OFFICIAL_COUNT,
    PARTITION_FILE,
    read_mapping,
    read_partition,
)

SPLITS = ("train", "val", "test")
ABOUT_FILE = "faces.json"  # what was written into a folder, by whom, with the kind of its split
SPLIT_KINDS = {
    "identity": "CelebA's own, by identity: no person is on both sides",
    "chance": "by chance: photographs of one person may be on both sides",
    "drawn": "drawn faces, each of them another",
    "own": "by the folder's own files, which are not CelebA's",
}
LAST_TRAIN, LAST_VAL = 162_770, 182_637  # numbers in CelebA's file names, by its README


def official_split() -> np.ndarray:
    """The split of the 30,000 official indices: uint8 (30000,), 0 train, 1 val, 2 test.

    It is CelebA's partition through the CelebA-HQ mapping.
    """
    text = (Path(__file__).parent / "celeba_hq_split.txt").read_text()
    return np.frombuffer("".join(text.split()).encode(), dtype=np.uint8) - ord("0")


def split_of_original(name: str) -> int:
    """0 train, 1 val, 2 test of one of CelebA's file names, such as "000123.jpg"."""
    number = int(PurePath(name).stem)
    return 0 if number <= LAST_TRAIN else 1 if number <= LAST_VAL else 2


def split_by_chance(number: int) -> int:
    """0 train, 1 val, 2 test in parts of 80, 10 and 10 %, the same on every machine."""
    draw = int.from_bytes(sha256(f"split/{number}".encode()).digest()[:4], "big") % 10
    return {8: 1, 9: 2}.get(draw, 0)


def split_of(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """The split number of each index: by the folder's own two files, else the official one.

    Raises:
        ValueError: an index has no split; it is named.
    """
    if _has_own_split(folder):
        own = _own_split(folder)
        missing = [index for index in indices if index not in own]
        if missing:
            raise ValueError(
                f"{folder / MAPPING_FILE} has no row for {len(missing)} images, e.g. "
                f"{missing[0]}.jpg"
            )
        return np.array([own[index] for index in indices], dtype=np.uint8)
    beyond = [index for index in indices if index >= OFFICIAL_COUNT]
    if beyond:
        raise ValueError(
            f"{folder}: image {beyond[0]}.jpg is not one of CelebA-HQ's 0 to {OFFICIAL_COUNT - 1}, "
            f"and the folder has no {MAPPING_FILE} with {PARTITION_FILE} to tell its split. Does "
            "the copy count from 1, or is it not CelebA-HQ?"
        )
    return official_split()[list(indices)]


def _has_own_split(folder: Path) -> bool:
    return (folder / MAPPING_FILE).is_file() and (folder / PARTITION_FILE).is_file()


def _own_split(folder: Path) -> dict[int, int]:
    """Join a folder's mapping and partition files into {index: 0, 1 or 2}."""
    partition = read_partition(folder / PARTITION_FILE)
    mapping = read_mapping(folder / MAPPING_FILE)
    unknown = [name for name in mapping.values() if name not in partition]
    if unknown:
        raise ValueError(
            f"{folder / PARTITION_FILE} has no row for {unknown[0]}, named in {MAPPING_FILE}"
        )
    return {index: partition[name] for index, name in mapping.items()}


def write_about(folder: Path, split_kind: str, **facts: object) -> None:
    """Store the kind of a folder's split, and where its faces come from.

    Args:
        split_kind: one of `SPLIT_KINDS`.
    """
    files.write_json(folder / ABOUT_FILE, {"split_kind": split_kind, **facts})


def split_kind(folder: Path) -> str:
    """One of `SPLIT_KINDS`: as stored with the data, else as the folder's files show.

    Raises:
        ValueError: what is stored cannot be read.
    """
    about = folder / ABOUT_FILE
    if about.is_file():
        return _stored_kind(about)
    if not _has_own_split(folder):
        return "identity"
    partition = read_partition(folder / PARTITION_FILE)
    named = {name: partition.get(name) for name in read_mapping(folder / MAPPING_FILE).values()}
    is_celebas = all(
        PurePath(name).stem.isdecimal() and split_of_original(name) == split
        for name, split in named.items()
    )
    return "identity" if is_celebas else "own"


def _stored_kind(about: Path) -> str:
    try:
        kind = json.loads(about.read_text(encoding="utf-8"))["split_kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{about} is damaged ({error}): import the faces again") from error
    if kind not in SPLIT_KINDS:
        raise ValueError(f"{about}: unknown split_kind {kind!r}: one of {', '.join(SPLIT_KINDS)}")
    return kind
