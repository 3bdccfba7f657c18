"""Pictures made elsewhere, as a folder of image files: a peer's model under the same judges."""

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
from custom_datasets.images import read_image
from evaluation.captions import read_caption, read_captions
from evaluation.sets import ORDER_SEED
from inference.picture_sets import key_of

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class FolderImages(Sequence[Tensor]):
    """Image files as uint8 (3, size, size), read on access, in a random order."""

    folder: Path
    paths: tuple[Path, ...]
    size: int  # pixels; other sizes are resized and cropped as the real faces are

    @cached_property
    def key(self) -> object:
        """Names, sizes and times of the files."""
        files = [(self.name(p), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        return [str(self.folder.resolve()), self.size, key_of(files)]

    def name(self, path: Path) -> str:
        """A file's name in the folder, as a table of captions gives it."""
        return path.relative_to(self.folder).as_posix()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, slot: int) -> Tensor:
        return read_image(self.paths[slot], self.size)


def open_folder(folder: Path, size: int) -> FolderImages:
    """The images of a folder and its sub-folders, which a seed shuffles.

    A picture of another size than most is left out by name, such as the grid that `sample.py`
    leaves.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an image cannot be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder.resolve()}: --pictures takes a folder of images"
        )
    found = sorted(
        (p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS), key=_reading_order
    )
    if not found:
        raise FileNotFoundError(f"{folder.resolve()} holds no {', '.join(ENDINGS)}")
    with ThreadPoolExecutor() as readers:
        sizes = list(readers.map(_size, found))
    (usual, _), *_ = Counter(sizes).most_common()
    kept = [path for path, each in zip(found, sizes, strict=True) if each == usual]
    if others := [path.name for path in found if path not in kept]:
        print(
            f"left out, as they are not {usual[0]}x{usual[1]}: {', '.join(others[:5])} "
            f"({len(others)} in all)"
        )
    order = np.random.default_rng(ORDER_SEED).permutation(len(kept))
    return FolderImages(folder, tuple(kept[i] for i in order), size)


def captions_of(images: FolderImages, table: Path) -> list[Caption]:
    """The caption of each image, from a table.

    Raises:
        FileNotFoundError, ValueError: see `read_captions`; or an image has none.
    """
    texts = read_captions(table)
    missing = [name for name in map(images.name, images.paths) if name not in texts]
    if missing:
        raise ValueError(
            f"{table} has no caption for {len(missing)} of {len(images)} images, such as "
            f"{missing[0]!r}: add a line for it"
        )
    return [read_caption(texts[images.name(path)]) for path in images.paths]


def _reading_order(path: Path) -> list[tuple[int, int | str]]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image that can be read whole."""
    try:
        with Image.open(path) as image:
            image.load()  # the header alone does not tell that pixels are missing
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path}: {error}. Remove it or make it again") from error
