"""Looks through the images of a source once, before any long work.

What cannot be decoded is left out by name, and a digest of each file is taken, which identifies the
images wherever they lie: the latents of an image that was replaced or turned are never used.
"""

import hashlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.face_table import reasons_in_lines, say_once
from custom_datasets.images import open_rgb, read_bytes, stamp
from files import locked, replacing

MIN_SIDE = 32  # pixels; a smaller image holds no face
ENOUGH_PIXELS = 64  # along a side, to see whether a JPEG can be decoded
MAX_UNUSABLE = 0.5  # share of a source; with more, the copy is bad: download it again
DIGEST = 16  # bytes


def screen(faces: CelebAHQ, records: Path, workers: int = 4) -> CelebAHQ:
    """The faces whose images can be used, with their digests; the others are listed.

    Args:
        records: folder that keeps the result while the files are unchanged. Of several processes
            one looks, the others wait.

    Raises:
        OSError: a file cannot be read, which may be different tomorrow: no result is kept.
        ValueError: more than half cannot be used; names the first of them.
    """
    identity = f"{stamp(faces.table.pictures)}{faces.names.tolist()}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    record = records / f"screened_{key}.npz"
    with locked(record.with_suffix(".lock")):
        if not record.is_file():
            digests, unusable = _look_through(faces, workers)
            with replacing(record) as temporary, temporary.open("wb") as file:
                np.savez(file, digests=digests, reasons=json.dumps(unusable))
    with np.load(record) as values:
        digests, unusable = values["digests"], json.loads(str(values["reasons"]))
    faces.table.digests = digests
    if unusable:
        named = {str(faces.names[int(at)]): why for at, why in unusable.items()}
        text = f"{len(named)} of {len(faces)} images of {faces.source} cannot be used"
        if len(named) > MAX_UNUSABLE * len(faces):
            raise ValueError(f"{text}; download them again:{reasons_in_lines(named)}")
        say_once(f"left out, as {text}:{reasons_in_lines(named)}")
    copies = _copies(faces.names, digests) if faces.split_kind == "chance" else {}
    if copies:
        named = {str(faces.names[at]): why for at, why in copies.items()}
        say_once(f"left out, as chance would divide them:{reasons_in_lines(named)}")
    return faces.without([int(at) for at in unusable] + list(copies))


def _copies(names: np.ndarray, digests: np.ndarray) -> dict[int, str]:
    """The positions of files that an earlier one is equal to, and which: a split by chance could
    train on one and measure with the other.
    """
    _, first, kind = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    original = first[kind.ravel()]
    again = np.flatnonzero(original != np.arange(len(names)))
    return {int(at): f"the same file as {names[original[at]]}" for at in again}


def fingerprint(faces: CelebAHQ) -> str:
    """Sixteen hex digits of the content of the images, in their order."""
    digests = faces.table.digests
    digests = _look_through(faces, 4)[0] if digests is None else digests
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]


def _look_through(faces: CelebAHQ, workers: int) -> tuple[np.ndarray, dict[str, str]]:
    """Digests uint8 (N, 16), and why images cannot be used, by their position."""
    digests, unusable = np.zeros((len(faces), DIGEST), np.uint8), {}

    def look(position: int) -> None:
        content = read_bytes(faces.file(position))
        digest = hashlib.sha256(content).digest()[:DIGEST]
        digests[position] = np.frombuffer(digest, np.uint8)
        if why := examine(content):
            unusable[str(position)] = why

    with ThreadPoolExecutor(max(1, workers)) as readers:
        looked = readers.map(look, range(len(faces)))
        list(tqdm(looked, "looking through the images", len(faces), mininterval=2, delay=2))
    return digests, dict(sorted(unusable.items(), key=lambda item: int(item[0])))


def examine(content: bytes) -> str:
    """Why the content of a file cannot be used as an image; empty if it can."""
    try:
        width, height = open_rgb(io.BytesIO(content), ENOUGH_PIXELS).size
    except ValueError as error:
        # Pillow does not tell what an unknown file is: a web page, a Git LFS pointer, nothing.
        is_unknown = "cannot identify" in str(error)
        return f"no image; it begins with {content[:20]!r}" if is_unknown else str(error)
    return f"{width}x{height} pixels" if min(width, height) < MIN_SIDE else ""
