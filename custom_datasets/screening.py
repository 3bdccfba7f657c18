"""Finds images that cannot be used before any long work, and leaves them out by name.

Only the first and the last bytes of each file are read: enough to tell an empty file, a text named
.jpg, a broken link, a picture cut short or of impossible size. The result is kept beside a
fingerprint of the files, so the same folder is looked through once.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from custom_datasets.celeba_hq_dataset import CelebAHQ

LEAST_SIDE = 32  # pixels; what is smaller holds no face
MOST_PIXELS = 89_478_485  # Pillow's own bound against decompression bombs
MOST_UNUSABLE = 0.01  # share of a split; with more, the copy is bad and should be fetched anew
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def examine(path: Path) -> str | None:
    """Why an image cannot be used, or None. Reads its header and its end, not its pixels."""
    try:
        with Image.open(path) as image:
            (width, height), kind = image.size, image.format
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        return str(error) if path.exists() else "no such file, or a broken link"
    if min(width, height) < LEAST_SIDE or width * height > MOST_PIXELS:
        return f"{width}x{height} pixels"
    if kind in ENDS and ENDS[kind] not in _end_of(path):
        return f"the {kind} file is cut short"
    return None


def _end_of(path: Path, count: int = 1024) -> bytes:
    # Some writers leave a few bytes after the end marker.
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - count))
        return file.read()


def screen(faces: CelebAHQ, records: Path, workers: int = 4) -> CelebAHQ:
    """The faces whose images can be used; the others are listed.

    Args:
        records: folder that keeps the result.

    Raises:
        ValueError: more than 1% cannot be used; names the first of them.
    """
    record = records / f"screened_{fingerprint(faces)}.json"
    if record.is_file():
        unusable = {int(key): reason for key, reason in json.loads(record.read_text()).items()}
    else:
        with ThreadPoolExecutor(max(1, workers)) as readers:
            reasons = readers.map(examine, map(faces.path, range(len(faces))))
            unusable = {i: reason for i, reason in enumerate(reasons) if reason}
        records.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(f".{os.getpid()}.tmp")  # every process looks for itself
        temporary.write_text(json.dumps(unusable))
        temporary.replace(record)
    lines = [f"  {faces.path(i).name}: {reason}" for i, reason in unusable.items()]
    if len(unusable) > MOST_UNUSABLE * len(faces):
        raise ValueError(
            f"{len(unusable)} of {len(faces)} images in {faces.folder} cannot be used; fetch them "
            "anew, or remove them:\n" + "\n".join(lines[:20])
        )
    if unusable:
        print(f"left out of {len(faces)} images, as they cannot be used:", *lines, sep="\n")
    return faces.without(list(unusable)) if unusable else faces


def fingerprint(faces: CelebAHQ) -> str:
    """Sixteen hex digits of where the images lie, which they are, their sizes and times."""
    digest = hashlib.sha256(str(faces.folder.resolve()).encode())
    for position in range(len(faces)):
        path = faces.path(position)
        stat = path.stat() if path.exists() else None
        digest.update(f"{path.name}/{stat and (stat.st_size, stat.st_mtime_ns)};".encode())
    return digest.hexdigest()[:16]
