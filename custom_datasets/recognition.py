"""Recognises the faces of CelebA-HQ by their content, under any names, in any order and size.

A perceptual hash (ImageHash's `phash` of 16 x 16 bits) of each of the 30,000 official faces ships
in `recognition/phash16.npy`. A copy of a face, resized or compressed again, is at most 32 of 256
bits away; other people are 40 and more, half of them 74. What is nearer than that under another
index is the same photograph, which CelebA-HQ holds twice (`recognition/same_photograph.csv`).

Attributes are not shipped. `recognition/attribute_digests.npy` holds eight bits of a checksum of
each face's 40, which tell whether attributes that came with a copy are those of its faces.
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path

import datasets
import imagehash
import numpy as np
from tqdm import tqdm

import config
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    OFFICIAL_COUNT,
    as_attributes,
    homes,
    image_number,
    read_attributes,
)
from custom_datasets.images import ImageFile, image_file, open_rgb, stamp
from files import replacing
from hub import download

MAX_DISTANCE = 32  # bits of 256
SAMPLE = 64  # faces that are looked at before all are
SHARE_OF_COPY = 0.5  # of the sample that is recognised in a copy of CelebA-HQ, mixed with others
SHARE_OF_CLAIMED = 0.95  # of the sample that is what its name or row claims, where names are right
ENOUGH_PIXELS = 128  # along a side, for the hash
WORKERS = 4
UNKNOWN = -1  # in place of an index, or of an attribute
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
    """256 bits as uint64 (4,); None of what is no image, or a damaged one."""
    try:
        image = open_rgb(file, ENOUGH_PIXELS)
    except ValueError:
        return None
    return np.packbits(imagehash.phash(image, hash_size=16).hash).view(np.uint64)


def recognise(found: np.ndarray | None) -> int:
    """The official index of a perceptual hash, or `UNKNOWN`."""
    if found is None:
        return UNKNOWN
    distances = np.bitwise_count(known_hashes() ^ found).sum(axis=1)
    nearest = int(distances.argmin())
    return nearest if distances[nearest] <= MAX_DISTANCE else UNKNOWN


def official_indices(pictures: datasets.Dataset, claimed: np.ndarray) -> np.ndarray | None:
    """The official index of each picture, `UNKNOWN` of those that are no face of CelebA-HQ.

    A sample is looked at first. If its faces are what names or rows claim, all are believed. If
    they are CelebA-HQ's in another order, all pictures are looked at, once: the result is kept.

    Args:
        claimed: int (N,), whatever names or rows are; no claim where one cannot be an index.

    Returns:
        int (N,), or None: these are other pictures than CelebA-HQ's.
    """
    count = len(pictures)
    sample = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int))
    hashes = ((i, perceptual_hash(image_file(pictures, i))) for i in sample.tolist())
    seen = {number: bits for number, bits in hashes if bits is not None}
    if not seen:
        return None
    numbers, bits = list(seen), np.stack(list(seen.values()))
    if claimed.min() >= 0 and claimed.max() < OFFICIAL_COUNT:
        distances = np.bitwise_count(known_hashes()[claimed[numbers]] ^ bits).sum(axis=1)
        if np.mean(distances <= MAX_DISTANCE) >= SHARE_OF_CLAIMED:
            return claimed
    if np.mean([recognise(each) != UNKNOWN for each in bits]) < SHARE_OF_COPY:
        return None
    return _recognise_all(pictures)


def _recognise_all(pictures: datasets.Dataset) -> np.ndarray:
    key = sha256(f"{stamp(pictures)}/{MAX_DISTANCE}".encode()).hexdigest()[:16]
    record = config.ROOT / "data" / "recognised" / f"{key}.npy"
    if record.is_file():
        return np.load(record)

    def look(number: int) -> int:
        return recognise(perceptual_hash(image_file(pictures, number)))

    with ThreadPoolExecutor(WORKERS) as readers:
        found = readers.map(look, range(len(pictures)))
        indices = np.array(list(tqdm(found, "recognising faces", len(pictures), mininterval=1)))
    with replacing(record) as temporary, temporary.open("wb") as opened:
        np.save(opened, indices)
    return indices


def official_attributes(source: str) -> np.ndarray:
    """The attributes of the 30,000 official faces, int8 (30000, 40), 0 and 1, `UNKNOWN` of faces
    that the file lacks: from an annotation file in the source, beside it, in CELEBA_HQ_DIR or in
    `data/celeba_hq`, else the column of the hub's data set alone, without its pictures, kept.

    Raises:
        ConnectionError: there is no such file, and the hub does not answer.
        ValueError: they are of other faces.
    """
    if place := _annotation_file(Path(source)):
        names, found = read_attributes(place)
        values = np.full((OFFICIAL_COUNT, len(ATTRIBUTES)), UNKNOWN, np.int8)
        values[[image_number(name) for name in names]] = found
        return values
    record = config.ROOT / "data" / "celeba_hq_attributes.npy"
    values = np.load(record) if record.is_file() else _fetch_attributes(record)
    return values.astype(np.int8)


def _annotation_file(source: Path) -> Path | None:
    places = [(source, ""), (source, "*/"), (source.parent, "")]
    places += [(home, way) for home in homes() for way in ("", "*/")]
    found = (path for folder, way in places for path in folder.glob(way + ATTRIBUTE_FILE))
    return next(found, None)


def _fetch_attributes(record: Path) -> np.ndarray:
    def load() -> np.ndarray:
        rows = datasets.load_dataset(
            config.CELEBA_HQ, split="train", streaming=True, columns=["attributes"]
        )
        return np.array([row["attributes"] for row in rows])

    try:
        values = as_attributes(config.CELEBA_HQ, download(load))
    except (ConnectionError, FileNotFoundError) as error:
        raise ConnectionError(
            f"no attributes for these faces of CelebA-HQ: put {ATTRIBUTE_FILE} beside them or into "
            f"the folder that CELEBA_HQ_DIR names, or let {config.CELEBA_HQ} be reached on the hub "
            f"({error})"
        ) from error
    if not np.array_equal(attribute_digests(values), known_digests()):
        raise ValueError(f"{config.CELEBA_HQ} is no longer in CelebA-HQ's order")
    with replacing(record) as temporary, temporary.open("wb") as opened:
        np.save(opened, values)
    return values
