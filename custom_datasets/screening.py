"""Finds images that cannot be used before any long work, and leaves them out by name.

Only the first and the last bytes of each file are read: enough to tell an empty file, a text named
.jpg, a broken link, a picture cut short or of impossible size. The result is kept under a
fingerprint of the files, so the same faces are examined once, in whatever folder they are.
"""

import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from custom_datasets.celeba_files import IMAGE_FOLDER
from custom_datasets.celeba_hq_dataset import IMAGE_FORMATS, CelebAHQ
from files import locked, write_json

LEAST_SIDE = 32  # pixels; a smaller image holds no face
MOST_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs
MOST_UNUSABLE = 0.01  # share of a split; with more, the copy is bad: download it again
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
END_BYTES = 1024  # some writers leave a few bytes after the end marker
COMPARED = 8  # files of a set whose ends are part of its fingerprint


class UnusableImage(ValueError):
    """Why a file cannot be used as an image."""


def image_format(file: BinaryIO) -> tuple[str, tuple[int, int]]:
    """Pillow's name of an image's format, and its (width, height). Reads its header and its end.

    Raises:
        UnusableImage: it is no image, is cut short, or is of impossible size.
    """
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            (width, height), kind = image.size, image.format
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnusableImage(_why_not(file, error)) from error
    if min(width, height) < LEAST_SIDE or width * height > MOST_PIXELS:
        raise UnusableImage(f"{width}x{height} pixels")
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    if kind in ENDS and ENDS[kind] not in file.read():
        raise UnusableImage(f"the {kind} file is cut short")
    if kind == "WEBP" and size < _webp_size(file):
        raise UnusableImage("the WEBP file is cut short")
    return kind, (width, height)


def _webp_size(file: BinaryIO) -> int:
    file.seek(4)  # after "RIFF": the number of bytes that follow
    return 8 + int.from_bytes(file.read(4), "little")


def _why_not(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    start = file.read(64).lstrip()
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image: run 'git lfs pull'"
    if start.startswith(b"<"):
        return "a web page, not an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a JPEG, PNG or WebP image"
    return str(error)


def examine(path: Path) -> str | None:
    """Why an image cannot be used, or None. Reads its header and its end, not its pixels."""
    try:
        with path.open("rb") as file:
            image_format(file)
    except UnusableImage as error:
        return str(error)
    except OSError as error:
        return str(error) if path.exists() else "no such file, or a broken link"
    return None


def screen(faces: CelebAHQ, records: Path, workers: int = 4) -> CelebAHQ:
    """The faces whose images can be used; the others are listed.

    Args:
        records: folder that keeps the result. Of several processes one looks, the others wait.

    Raises:
        ValueError: more than 1% cannot be used; names the first of them.
    """
    record = records / f"screened_{fingerprint(faces)}.json"
    with locked(record.with_suffix(".lock")):
        unusable = _recorded(record, faces)
        if unusable is None:
            unusable = _look_through(faces, workers)
            write_json(record, unusable)
    lines = [f"  {name}: {reason}" for name, reason in unusable.items()]
    if len(unusable) > MOST_UNUSABLE * len(faces):
        raise ValueError(
            f"{len(unusable)} of {len(faces)} images in {faces.folder} cannot be used; "
            "download them again, or remove them:\n" + "\n".join(lines[:20])
        )
    if unusable:
        print(f"left out of {len(faces)} images, as they cannot be used:", *lines, sep="\n")
    return faces.without(np.flatnonzero(np.isin(faces.names, list(unusable))))


def _look_through(faces: CelebAHQ, workers: int) -> dict[str, str]:
    with ThreadPoolExecutor(max(1, workers)) as readers:
        reasons = readers.map(examine, map(faces.path, range(len(faces))))
        return {str(name): why for name, why in zip(faces.names, reasons, strict=True) if why}


def _recorded(record: Path, faces: CelebAHQ) -> dict[str, str] | None:
    """The reasons that a record holds by file name; None where there is none, or it is damaged."""
    if not record.is_file():
        return None
    try:
        unusable = json.loads(record.read_text(encoding="utf-8"))
        whole = isinstance(unusable, dict) and set(unusable) <= set(faces.names.tolist())
    except ValueError:
        whole = False
    if not whole:
        print(f"{record} is damaged: examining the images again")
        return None
    return unusable


def fingerprint(faces: CelebAHQ) -> str:
    """Sixteen hex digits of the images' names and sizes, and of the ends of a few.

    A copy of the folder, or one unpacked again, has the same.
    """
    wanted = set(faces.names.tolist())
    with os.scandir(faces.folder / IMAGE_FOLDER) as entries:
        # Asked for while the folder is listed: network drives send sizes along with the names.
        sizes = {e.name: e.stat().st_size for e in entries if e.name in wanted and e.is_file()}
    digest = hashlib.sha256()
    for name in faces.names.tolist():
        digest.update(f"{name}/{sizes.get(name)};".encode())
    for name in sorted(sizes)[:: max(1, len(sizes) // COMPARED)]:
        with (faces.folder / IMAGE_FOLDER / name).open("rb") as file:
            file.seek(max(0, sizes[name] - END_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]
