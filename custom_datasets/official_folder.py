"""Writes the rows of a copy in the official folder form: images as they are, and the tables."""

import dataclasses
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import files
from custom_datasets.celeba_files import (
    IMAGE_FOLDER,
    write_attributes,
    write_partition,
)
from custom_datasets.screening import UnusableImage, image_format
from custom_datasets.sources import Row
from custom_datasets.splits import (
    SPLITS,
    official_split,
    split_by_chance,
    split_of_original,
    write_about,
)
from custom_datasets.verification import is_in_official_order

EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
CELEBA_SIZE = (178, 218)  # pixels, of CelebA's aligned faces; those of CelebA-HQ are square
WRITERS = 8  # threads: each file waits for the disk
BATCH = 64  # rows in memory


@dataclass
class Written:
    """What a folder holds after `write_faces`."""

    rows: list[Row] = field(default_factory=list)  # of the faces written; without their images
    names: list[str] = field(default_factory=list)  # of their files
    indices: list[int] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # name in the copy -> reason
    has_official_indices: bool = False  # the indices are CelebA-HQ's own, not running numbers
    split_kind: str = "chance"

    def split_counts(self) -> str:
        """Such as "8 train, 1 val, 1 test"."""
        counts = Counter(self.splits)
        return ", ".join(f"{counts[number]} {name}" for number, name in enumerate(SPLITS))


class _Outcome(NamedTuple):
    """Of one image: the file that was written, and its size in pixels, or why it was not."""

    name: str = ""
    size: tuple[int, int] | None = None
    why_not: str | None = None


def write_faces(rows: Iterable[Row], folder: Path, source: str, is_hq: bool = True) -> Written:
    """Write rows in the official form. Images that are there already, byte for byte, are kept.

    Args:
        source: what the rows were read from; stored with them.
        is_hq: the faces are CelebA-HQ's, not CelebA's.

    Raises:
        ValueError: no face can be used, or fewer than half of them; or CelebA's where CelebA-HQ's
            are meant.
    """
    written = Written()
    attributes = _write_images(rows, folder / IMAGE_FOLDER, is_hq, written)
    if len(written.left_out) >= max(1, len(written.rows)):
        reasons = [f"  {name}: {why}" for name, why in list(written.left_out.items())[:5]]
        seen = len(written.rows) + len(written.left_out)
        raise ValueError(
            f"{len(written.left_out)} of {'the first ' * (not written.rows)}{seen} images cannot "
            "be used:\n" + "\n".join(reasons)
        )
    if not written.rows:
        raise ValueError(f"{source} holds no face")
    _divide(written, is_hq and is_in_official_order(np.stack(attributes)))
    _remove_others(folder / IMAGE_FOLDER, written.names)
    _write_tables(written, folder, source)
    return written


def _write_images(
    rows: Iterable[Row], folder: Path, is_hq: bool, written: Written
) -> list[np.ndarray]:
    """Write the images that can be used; gives the attributes of all rows."""
    folder.mkdir(parents=True, exist_ok=True)
    files.remove_unfinished(folder)
    attributes = []
    numbered = enumerate(rows)
    with ThreadPoolExecutor(WRITERS) as writers, tqdm(desc="importing", unit=" faces") as bar:
        while batch := list(islice(numbered, BATCH)):
            indices = [number if row.index is None else row.index for number, row in batch]
            rows = [row for _, row in batch]
            outcomes = writers.map(_write_image, repeat(folder), indices, rows)
            for (_, row), index, outcome in zip(batch, indices, outcomes, strict=True):
                if is_hq and outcome.size == CELEBA_SIZE:
                    raise ValueError(
                        f"{row.name} is 178x218 pixels, as the faces of CelebA are, which is not "
                        "CelebA-HQ: import it with --celeba"
                    )
                if row.attributes is not None:
                    attributes.append(row.attributes)
                _note(written, row, index, outcome)
            bar.update(len(batch))
            if not written.rows:  # a form that is not understood: no need to read all of it
                break
    return attributes


def _note(written: Written, row: Row, index: int, outcome: _Outcome) -> None:
    if outcome.why_not:
        written.left_out[row.name] = outcome.why_not
        return
    written.rows.append(dataclasses.replace(row, image=b""))
    written.names.append(outcome.name)
    written.indices.append(index)


def _write_image(folder: Path, index: int, row: Row) -> _Outcome:
    if row.attributes is None:
        return _Outcome(why_not=row.why_not)
    image = row.image
    try:
        data = image if isinstance(image, bytes) else image.read_bytes()
        kind, size = image_format(io.BytesIO(data))
    except (UnusableImage, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        return _Outcome(why_not=str(error) or type(error).__name__)
    path = folder / f"{index}{EXTENSIONS[kind]}"
    if not (path.is_file() and path.read_bytes() == data):
        with files.replacing(path) as temporary:
            temporary.write_bytes(data)
    return _Outcome(path.name, size)


def _divide(written: Written, in_official_order: bool) -> None:
    """Give each face its split: CelebA's own where it can be known, else one by chance.

    Args:
        in_official_order: attributes in the order of CelebA-HQ's faces; where rows bear no names,
            their running numbers then are CelebA-HQ's indices.
    """
    nameless = all(
        row.index is None and row.original is None and row.split is None for row in written.rows
    )
    known_by_order = nameless and in_official_order
    written.has_official_indices = known_by_order or all(r.index is not None for r in written.rows)
    official = official_split()
    by_chance = False
    for row, index in zip(written.rows, written.indices, strict=True):
        if row.split is not None:
            split = row.split
        elif row.original is not None:
            split = split_of_original(row.original)
        elif row.index is not None or known_by_order:
            split = int(official[index])
        else:
            split, by_chance = split_by_chance(index), True
        written.splits.append(split)
    written.split_kind = "chance" if by_chance else "identity"


def _remove_others(folder: Path, names: Iterable[str]) -> None:
    """Delete what an earlier attempt left of images that are not among these."""
    for name in {path.name for path in folder.iterdir()} - set(names):
        (folder / name).unlink()


def _write_tables(written: Written, folder: Path, source: str) -> None:
    rows = written.rows
    write_attributes(folder, {n: r.attributes for n, r in zip(written.names, rows, strict=True)})
    if not written.has_official_indices or any(row.original for row in rows):
        numbered = zip(rows, written.indices, strict=True)
        originals = [row.original or f"row{index:06d}.jpg" for row, index in numbered]
        write_partition(folder, written.indices, originals, written.splits)
    facts = {"source": source, "faces": len(rows), "left_out": written.left_out}
    write_about(folder, written.split_kind, **facts)
