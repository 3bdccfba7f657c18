"""Looks through the images of a source once, before any long work.

What cannot be decoded is left out by name, and a digest of each file is taken, which identifies the
images wherever they lie: the latents of an image that was replaced or turned are never used.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.forms import reasons_in_lines, say_once
from custom_datasets.images import open_rgb
from files import locked, replacing

MIN_SIDE = 32  # pixels; a smaller image holds no face
ENOUGH_PIXELS = 64  # along a side, to see whether a JPEG can be decoded
MAX_UNUSABLE = 0.5  # share of a source; with more, the copy is bad: download it again
DIGEST = 16  # bytes
_REFERENCE = re.compile(r" <_io\.BytesIO .*?>")  # in Pillow's messages


def screen(faces: CelebAHQ, records: Path, workers: int = 4) -> CelebAHQ:
    """The faces whose images can be used, with their digests; the others are listed.

    Args:
        records: folder that keeps the result while the files are unchanged. Of several processes
            one looks, the others wait.

    Raises:
        ValueError: more than half cannot be used; names the first of them.
    """
    stamp = hashlib.sha256((faces.pictures.stamp() + str(faces.rows.tolist())).encode())
    record = records / f"screened_{stamp.hexdigest()[:16]}.npz"
    with locked(record.with_suffix(".lock")):
        found = _recorded(record)
        if found is None:
            found = _look_through(faces, workers)
            with replacing(record) as temporary, temporary.open("wb") as file:
                np.savez(file, digests=found[0], reasons=json.dumps(found[1]))
    digests, unusable = found
    if unusable:
        named = {str(faces.names[int(at)]): why for at, why in unusable.items()}
        text = f"{len(named)} of {len(faces)} images of {faces.source} cannot be used"
        if len(named) > MAX_UNUSABLE * len(faces):
            raise ValueError(f"{text}; download them again:{reasons_in_lines(named)}")
        say_once(f"left out, as {text}:{reasons_in_lines(named)}")
    faces.digests = digests
    return faces.without([int(at) for at in unusable])


def fingerprint(faces: CelebAHQ) -> str:
    """Sixteen hex digits of the content of the images, in their order."""
    digests = faces.digests if faces.digests is not None else _look_through(faces, 4)[0]
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]


def _look_through(faces: CelebAHQ, workers: int) -> tuple[np.ndarray, dict[str, str]]:
    """Digests uint8 (N, 16), and why images cannot be used, by their position."""
    digests, unusable = np.zeros((len(faces), DIGEST), np.uint8), {}
    for position, (digest, why) in enumerate(_examined(faces, workers)):
        digests[position] = np.frombuffer(digest, np.uint8)
        if why:
            unusable[str(position)] = why
    return digests, unusable


def _examined(faces: CelebAHQ, workers: int) -> Iterator[tuple[bytes, str]]:
    def look(position: int) -> tuple[bytes, str]:
        file = faces.file(position)
        try:
            content = file.read_bytes() if isinstance(file, Path) else file.read()
        except OSError as error:
            return bytes(DIGEST), str(error)
        return hashlib.sha256(content).digest()[:DIGEST], examine(content)

    with ThreadPoolExecutor(max(1, workers)) as readers:
        looked = readers.map(look, range(len(faces)))
        yield from tqdm(looked, "looking through the images", len(faces), mininterval=2, delay=2)


def examine(content: bytes) -> str:
    """Why the content of a file cannot be used as an image; empty if it can."""
    if not content.strip(b"\0"):
        return "the file is empty"
    if content.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: run 'git lfs pull'"
    if content.lstrip().startswith(b"<"):
        return "a web page, not an image"
    try:
        width, height = open_rgb(io.BytesIO(content), ENOUGH_PIXELS).size
    except ValueError as error:
        return _REFERENCE.sub("", str(error))
    return f"{width}x{height} pixels" if min(width, height) < MIN_SIDE else ""


def _recorded(record: Path) -> tuple[np.ndarray, dict[str, str]] | None:
    """What a record holds; None where there is none. It is written whole or not at all."""
    if not record.is_file():
        return None
    with np.load(record) as values:
        digests, unusable = values["digests"], json.loads(str(values["reasons"]))
    return digests, unusable
