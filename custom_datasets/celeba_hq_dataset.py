"""CelebA-HQ faces with their 40 attributes and the official split by identity.

Opens the official CelebAMask-HQ folder: `CelebA-HQ-img/<index>.jpg` of any size, also as .png or
.webp, and `CelebAMask-HQ-attribute-anno.txt`. The split of the 30,000 official faces ships with
this file; a folder that brings its own mapping and partition files (the drawn faces do) is split by
those.
"""

import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms

from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    image_number,
    read_attributes,
)
from custom_datasets.splits import SPLITS, split_kind, split_of

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's other decoders stay closed to unknown files


@dataclass(frozen=True)
class Face:
    """One face: the image, what is known of it, and which split it belongs to."""

    image: torch.Tensor  # uint8 (3, H, W)
    attributes: np.ndarray  # bool (40,), in the order of ATTRIBUTES
    index: int
    split: str


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` (antialiased) and cut the middle square out."""
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size], antialias=True), [size])
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB: upright by its EXIF tag, transparency over white, 16 bits scaled to 8.

    Pillow's own conversion ignores the tag, shows the colours that transparency hides, and clips
    16-bit values to white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64) / 257  # 65,535 becomes 255
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, size: int) -> torch.Tensor:
    """Read one image of any size as uint8 RGB (3, size, size).

    Raises:
        ValueError: the file is missing, is not an image, or is far too large; the message names it.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return transforms.pil_to_tensor(resize_and_crop(to_rgb(image), size))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"cannot read the image {path}: {error}. Remove it or download it again."
        ) from error


def to_model_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [0, 255] -> float [-1, 1], the range that the autoencoders were trained on."""
    return images.float() / 127.5 - 1


class CelebAHQ(Dataset):
    """The faces of one split (or of all) in a CelebAMask-HQ folder.

    Held in memory are `attributes` bool (N, 40), `indices` (N,), `splits` (N,) and the file names
    `names` (N,); images are read on access.

    Raises:
        FileNotFoundError: the folder, its images or its attribute file are missing; says how to get
            them.
        ValueError: files that contradict each other, or a split without a face.
    """

    def __init__(self, folder: str | Path, split: str | None, image_size: int) -> None:
        self.folder, self.split, self.image_size = Path(folder), split, image_size
        if split is not None and split not in SPLITS:
            raise ValueError(
                f"unknown split {split!r}: choose one of {', '.join(SPLITS)} or None for all"
            )
        _require_layout(self.folder)
        rows = read_attributes(self.folder / ATTRIBUTE_FILE, image_number)
        names = find_images(self.folder / IMAGE_FOLDER)
        unlabelled = [name for index, name in names.items() if index not in rows]
        if unlabelled:
            raise ValueError(
                f"{self.folder}: {len(unlabelled)} of {len(names)} images have no row in "
                f"{ATTRIBUTE_FILE}, e.g. {unlabelled[0]}"
            )
        splits = split_of(self.folder, list(names))
        chosen = np.ones(len(names), bool) if split is None else splits == SPLITS.index(split)
        if not chosen.any():
            raise ValueError(
                f"{self.folder}: none of its {len(names)} images belongs to the split {split!r}"
            )
        self.indices = np.array(list(names))[chosen]
        self.names = np.array(list(names.values()))[chosen]
        self.splits = splits[chosen]
        self.attributes = np.empty((len(self.indices), len(ATTRIBUTES)), bool)
        for position, index in enumerate(self.indices.tolist()):
            self.attributes[position] = rows[index]
        self.present_count, self.listed_count = len(names), len(rows)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Face:
        index = int(self.indices[position])
        image = read_image(self.path(position), self.image_size)
        return Face(image, self.attributes[position], index, SPLITS[self.splits[position]])

    @cached_property
    def split_kind(self) -> str:
        """How the folder was divided: one of `splits.SPLIT_KINDS`.

        Raises:
            ValueError: see `splits.split_kind`.
        """
        return split_kind(self.folder)

    def images(self, workers: int = 4) -> "Images":
        """The images alone, read when they are asked for."""
        return Images(self, workers)

    def all_images(self, workers: int = 4) -> torch.Tensor:
        """All images in memory, uint8 (N, 3, S, S)."""
        return self.images(workers)[:]

    def without(self, positions: Sequence[int]) -> "CelebAHQ":
        """The same faces but those at these positions."""
        kept = np.setdiff1d(np.arange(len(self)), positions)
        fewer = copy.copy(self)
        fewer.indices, fewer.splits = self.indices[kept], self.splits[kept]
        fewer.attributes, fewer.names = self.attributes[kept], self.names[kept]
        return fewer

    def path(self, position: int) -> Path:
        """The path of the image at this position."""
        return self.folder / IMAGE_FOLDER / str(self.names[position])

    def __repr__(self) -> str:
        return (
            f"CelebAHQ({str(self.folder)!r}, split={self.split!r}): {len(self)} faces at "
            f"{self.image_size} px; "
            f"the folder holds {self.present_count} of {self.listed_count} images"
        )


class Images:
    """The images of some faces as a sequence that reads only the requested ones into memory.

    `images[i]` is uint8 (3, S, S); `images[[3, 1]]`, `images[10:20]` and `images[mask]` are
    uint8 (n, 3, S, S).
    """

    def __init__(self, faces: CelebAHQ, workers: int) -> None:
        self.faces, self.workers = faces, max(1, workers)

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, which: Any) -> torch.Tensor:
        """Read these images; takes any index of a numpy array.

        Raises:
            IndexError: there is no such image.
            ValueError: see `read_image`.
        """
        chosen = np.arange(len(self.faces))[which]
        size = self.faces.image_size
        if chosen.ndim == 0:
            return read_image(self.faces.path(int(chosen)), size)
        images = torch.empty((len(chosen), 3, size, size), dtype=torch.uint8)

        def read(place: int) -> None:
            images[place] = read_image(self.faces.path(int(chosen[place])), size)

        with ThreadPoolExecutor(self.workers) as readers:
            list(readers.map(read, range(len(chosen))))  # the list raises what a reader raised
        return images


def find_images(folder: Path) -> dict[int, str]:
    """The images of a folder as {index: file name}, in the order of their indices.

    Raises:
        ValueError: there is none, or two files have one index; says which files were seen.
    """
    with os.scandir(folder) as entries:
        seen = sorted(entry.name for entry in entries)
    images: dict[int, str] = {}
    for name in seen:
        index = image_number(name)
        if index is None:  # such as Thumbs.db, and the "._7.jpg" that macOS adds
            continue
        if index in images:
            raise ValueError(f"{folder}: {images[index]} and {name} have one index; keep one")
        images[index] = name
    if not images:
        others = f"; it holds {', '.join(seen[:3])}" if seen else ""
        raise ValueError(
            f"{folder} holds no <index>.jpg, nor .jpeg, .png or .webp with such a name{others}"
        )
    return dict(sorted(images.items()))


def _require_layout(folder: Path) -> None:
    missing = [name for name in (IMAGE_FOLDER, ATTRIBUTE_FILE) if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"no CelebA-HQ at {folder.resolve()}: {' and '.join(missing)} missing. Unpack "
            "CelebAMask-HQ there "
            "(github.com/switchablenorms/CelebAMask-HQ), or name its folder with "
            "CELEBA_HQ_DIR=/path/to/folder. "
            "To try everything without it: LDM_PRESET=demo."
        )
