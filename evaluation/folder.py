"""Pictures made elsewhere, as a folder of image files, with the captions they were asked for.

A peer's model is so judged by the same judge, against the same faces.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from custom_datasets.captions import Caption
from custom_datasets.celeba_hq_dataset import read_image
from evaluation.sets import ORDER_SEED
from evaluation.wording import read_caption
from inference.picture_sets import key_of

ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}
# The names that tables of captions give their two columns; the first are those of the `datasets`
# library's image folders.
FILE_COLUMNS = ("file_name", "file", "filename", "image", "name")
TEXT_COLUMNS = ("text", "caption", "prompt")


@dataclass(frozen=True)
class FolderImages(Sequence[Tensor]):
    """Image files as uint8 (3, size, size), read on access, in a random order."""

    paths: tuple[Path, ...]
    size: int  # pixels; other sizes are resized and cropped as the real faces are
    damaged: tuple[Path, ...]  # found beside them and left out
    formats: str  # "JPEG, 512x512: 40; PNG, 256x256: 2"

    @cached_property
    def key(self) -> object:
        """Names, sizes and times of the files."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return [str(self.paths[0].parent.resolve()), self.size, key_of(files)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Tensor:
        return read_image(self.paths[place], self.size)


def open_folder(folder: Path, size: int) -> FolderImages:
    """The images of a folder, which a seed shuffles: files may be sorted by what they show.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.resolve()}: --pictures takes a folder of images"
        )
    found = sorted((p for p in folder.iterdir() if _is_image_file(p)), key=in_reading_order)
    with ThreadPoolExecutor() as readers:
        kinds = dict(zip(found, readers.map(_kind, found), strict=True))
    whole = [path for path in found if kinds[path]]
    if not whole:
        raise FileNotFoundError(
            f"{folder.resolve()} holds no image that can be read: {', '.join(sorted(ENDINGS))} are "
            "looked for, in the folder itself"
        )
    counts = Counter(kinds[path] for path in whole)
    formats = "; ".join(f"{kind}: {count}" for kind, count in counts.most_common())
    order = np.random.default_rng(ORDER_SEED).permutation(len(whole))
    damaged = tuple(path for path in found if not kinds[path])
    return FolderImages(tuple(whole[i] for i in order), size, damaged, formats)


def in_reading_order(path: Path) -> tuple[tuple[int, int | str], ...]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def read_captions(path: Path, images: FolderImages) -> list[Caption]:
    """The caption of each image, in the images' order, with the attributes that it asserts.

    Args:
        path: a table (.csv, .jsonl) with a column `file_name` and one `text`, a .json object of
            texts by file name, or a text file with one caption a line, in the files' order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: images without a caption, or another number of lines; both are named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of captions at {path.resolve()}")
    is_table = path.suffix.lower() in (".csv", ".jsonl", ".json")
    texts = _table(path) if is_table else _lines(path, images)
    missing = [image.name for image in images.paths if image.name not in texts]
    if missing:
        raise ValueError(f"{path} has no caption for {len(missing)} images, such as {missing[0]}")
    return [read_caption(texts[image.name]) for image in images.paths]


def _table(path: Path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        return dict(json.loads(text))
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    columns = list(rows[0]) if rows else []
    names = [[c for c in wanted if c in columns] for wanted in (FILE_COLUMNS, TEXT_COLUMNS)]
    if not all(names):
        raise ValueError(
            f"{path} has the columns {columns}: one named {FILE_COLUMNS[0]!r} with the file "
            f"names and one named {TEXT_COLUMNS[0]!r} with the captions are needed"
        )
    return {Path(row[names[0][0]]).name: row[names[1][0]] for row in rows}


def _lines(path: Path, images: FolderImages) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    files = sorted([*images.paths, *images.damaged], key=in_reading_order)
    if len(lines) != len(files):
        raise ValueError(
            f"{path} has {len(lines)} lines for {len(files)} images: one caption a line, in the "
            "order of the file names"
        )
    return {image.name: line for image, line in zip(files, lines, strict=True)}


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _kind(path: Path) -> str:
    """Format and size of an image that can be read whole; empty of one that cannot."""
    try:
        with Image.open(path) as image:
            kind = f"{image.format}, {image.width}x{image.height}"
            image.load()  # the header alone does not tell that pixels are missing
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        return ""
    return kind
