"""Recognises the faces of CelebA-HQ by their content, under any names, in any order and size.

A perceptual hash (ImageHash's `phash` of 16 x 16 bits) of each of the 30,000 official faces ships
in `recognition/phash16.npy`. A copy of a face, resized or compressed again, is at most 32 of 256
bits away; other people are 40 and more, half of them 74. What is nearer than that under another
index is the same photograph, which CelebA-HQ holds twice (`splits.same_photograph`).

Attributes are not shipped. `recognition/attribute_digests.npy` holds eight bits of a checksum of
each face's 40, which tell whether attributes that came with a copy are those of its faces.
"""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import imagehash
import numpy as np
from tqdm import tqdm

import config
from custom_datasets.celeba_files import OFFICIAL_COUNT
from custom_datasets.images import ImageFile, open_rgb
from files import replacing

MAX_DISTANCE = 32  # bits of 256
SAMPLE = 64  # faces that are looked at before all are
SHARE_OF_COPY = 0.5  # of the sample that is recognised in a copy of CelebA-HQ, mixed with others
SHARE_OF_CLAIMED = 0.95  # of the sample that is what its name or row claims, where names are right
ENOUGH_PIXELS = 128  # along a side, for the hash
WORKERS = 4
UNKNOWN = -1  # in place of an index
_TABLES = Path(__file__).parent / "recognition"


@cache
def known_hashes() -> np.ndarray:
    """uint64 (30000, 4): 256 bits of each official face."""
    return np.load(_TABLES / "phash16.npy").view(np.uint64)


@cache
def known_digests() -> np.ndarray:
    """uint8 (30000,): `attribute_digests` of the annotation file."""
    return np.load(_TABLES / "attribute_digests.npy")


def attribute_digests(attributes: np.ndarray) -> np.ndarray:
    """Eight bits of a checksum of each row of attributes bool (N, 40): uint8 (N,)."""
    packed = np.packbits(attributes, axis=1)
    return np.array([zlib.crc32(row.tobytes()) & 0xFF for row in packed], dtype=np.uint8)


def perceptual_hash(file: ImageFile) -> np.ndarray | None:
    """256 bits as uint64 (4,); None of what cannot be read as an image."""
    try:
        image = open_rgb(file, ENOUGH_PIXELS)
    except ValueError:  # the screening tells why
        return None
    bits = imagehash.phash(image, hash_size=16).hash.reshape(-1)
    return np.packbits(bits).view(np.uint64)


def recognise(found: np.ndarray | None) -> int:
    """The official index of a perceptual hash, or `UNKNOWN`."""
    if found is None:
        return UNKNOWN
    distances = _distances(known_hashes(), found)
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= MAX_DISTANCE else UNKNOWN


def _distances(known: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.bitwise_count(known ^ found).sum(axis=1)


def official_indices(
    file: Callable[[int], ImageFile],
    count: int,
    claimed: np.ndarray | None,
    stamp: Callable[[], str],
) -> np.ndarray | None:
    """The official index of each picture, `UNKNOWN` of those that are no face of CelebA-HQ.

    A sample is looked at first. If its faces are what names or rows claim, all are believed. If
    they are CelebA-HQ's in another order, all pictures are looked at, once: the result is kept.

    Args:
        file: opens a picture by its number.
        claimed: official indices, (N,), as far as they can be such; None: nothing is claimed.
        stamp: gives what identifies the files.

    Returns:
        int (N,), or None: these are other pictures than CelebA-HQ's.
    """
    sample = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int))
    hashes = [perceptual_hash(file(int(number))) for number in sample]
    seen = [(number, bits) for number, bits in zip(sample, hashes, strict=True) if bits is not None]
    if not seen:
        return None
    if claimed is not None and _are_claimed(seen, claimed):
        return claimed
    if np.mean([recognise(bits) != UNKNOWN for _, bits in seen]) < SHARE_OF_COPY:
        return None
    return _recognise_all(file, count, stamp())


def _are_claimed(seen: Sequence[tuple[int, np.ndarray]], claimed: np.ndarray) -> bool:
    if claimed.min() < 0 or claimed.max() >= OFFICIAL_COUNT:
        return False
    known = known_hashes()
    near = [
        _distances(known[claimed[number]][None], bits)[0] <= MAX_DISTANCE for number, bits in seen
    ]
    return np.mean(near) >= SHARE_OF_CLAIMED


def _recognise_all(file: Callable[[int], ImageFile], count: int, stamp: str) -> np.ndarray:
    key = sha256(f"{stamp}/{count}/{MAX_DISTANCE}".encode()).hexdigest()[:16]
    record = config.ROOT / "data" / "recognised" / f"{key}.npy"
    if record.is_file():
        return np.load(record)
    with ThreadPoolExecutor(WORKERS) as readers:
        hashes = readers.map(lambda number: perceptual_hash(file(number)), range(count))
        bar = tqdm(hashes, "recognising faces", count, mininterval=1)
        indices = np.array([recognise(bits) for bits in bar])
    with replacing(record) as temporary, temporary.open("wb") as opened:
        np.save(opened, indices)
    return indices
