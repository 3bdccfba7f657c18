"""Faces with their 40 attributes or a caption, and the split by identity of CelebA-HQ.

A thin class over one `datasets.Dataset`; `sources` opens every form that faces come in.
"""

import copy
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from custom_datasets.captions import Caption, compose
from custom_datasets.images import ImageFile, read_image, to_model_range, to_rgb
from custom_datasets.sources import open_source
from custom_datasets.splits import SPLITS

__all__ = ["CelebAHQ", "Face", "Images", "read_image", "to_model_range", "to_rgb"]


@dataclass(frozen=True)
class Face:
    """One face: the image, what is known of it, and which split it belongs to."""

    image: torch.Tensor  # uint8 (3, H, W)
    attributes: np.ndarray | None  # bool (40,), in the order of ATTRIBUTES; None: not known
    index: int
    split: str


class CelebAHQ(Dataset):
    """The faces of one split (or of all) of a source, in the order of their indices.

    Held in memory are `attributes` bool (N, 40), or None where the source has captions alone,
    `indices` (N,), `splits` (N,) and `names` (N,); images are read on access.

    Args:
        source: a folder, or the id of a data set on the hub; see `sources`.
        split: "train", "val" or "test"; None: all.
        image_size: pixels along a side.

    Raises:
        FileNotFoundError, ConnectionError: the source is not available.
        ValueError: see `sources.open_source`; or a split without a face.
    """

    def __init__(self, source: str | Path, split: str | None, image_size: int) -> None:
        table = open_source(source)
        self.source, self.split, self.image_size = table.source, None, image_size
        self.split_kind, self.pictures = table.split_kind, table.pictures
        self.rows, self.names, self.indices = table.rows, table.names, table.indices
        self.splits, self.attributes = table.splits, table.attributes
        self.given_captions = table.captions
        self.digests: np.ndarray | None = None  # uint8 (N, 16), by the screening
        self.counts = {name: int((table.splits == i).sum()) for i, name in enumerate(SPLITS)}
        if split is not None:
            vars(self).update(vars(self.of_split(split)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Face:
        attributes = None if self.attributes is None else self.attributes[position]
        index, split = int(self.indices[position]), SPLITS[self.splits[position]]
        return Face(self.image(position), attributes, index, split)

    @property
    def has_attributes(self) -> bool:
        """Whether the 40 attributes of the faces are known."""
        return self.attributes is not None

    def caption(self, position: int, wording: int = 0, seed: int = 0) -> Caption:
        """A face's caption: as its source gives it, in turn by wording, else written from its
        attributes, and what it states of these.
        """
        if self.given_captions is not None:
            given = self.given_captions[position]
            return Caption(given[wording % len(given)], {})
        return compose(self.attributes[position], int(self.indices[position]), wording, seed)

    def label_fingerprint(self) -> str:
        """Sixteen hex digits of attributes and captions, in the order of the faces."""
        digest = hashlib.sha256(b"" if self.attributes is None else self.attributes.tobytes())
        if self.given_captions is not None:
            digest.update(repr(self.given_captions).encode())
        return digest.hexdigest()[:16]

    def file(self, position: int) -> ImageFile:
        """The image's file, as Pillow opens it: a path, or its content."""
        return self.pictures.file(int(self.rows[position]))

    def image(self, position: int) -> torch.Tensor:
        """The image, uint8 (3, S, S)."""
        name = f"{self.names[position]} of {self.source}"
        return read_image(self.file(position), self.image_size, name)

    def images(self, workers: int = 4) -> "Images":
        """The images alone, read when they are asked for."""
        return Images(self, workers)

    def all_images(self, workers: int = 4) -> torch.Tensor:
        """All images in memory, uint8 (N, 3, S, S)."""
        return self.images(workers)[:]

    def of_split(self, split: str | None) -> "CelebAHQ":
        """The faces of one split; None: all.

        Raises:
            ValueError: there is no such split, or no face in it.
        """
        if split is None:
            return self
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        others = np.flatnonzero(self.splits != SPLITS.index(split))
        if len(others) == len(self):
            raise ValueError(f"{self.source}: none of its {len(self)} faces is in {split!r}")
        chosen = self.without(others)
        chosen.split = split
        return chosen

    def without(self, positions: Sequence[int]) -> "CelebAHQ":
        """The same faces but those at these positions."""
        fewer = copy.copy(self)
        fewer._keep(np.setdiff1d(np.arange(len(self)), positions))
        return fewer

    def _keep(self, kept: np.ndarray) -> None:
        for name in ("rows", "names", "indices", "splits", "attributes", "digests"):
            values = getattr(self, name)
            setattr(self, name, None if values is None else values[kept])
        if self.given_captions is not None:
            self.given_captions = [self.given_captions[position] for position in kept]

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return (
            f"CelebAHQ({self.source!r}, split={self.split!r}): {len(self)} faces at "
            f"{self.image_size} px; the source holds {counts}"
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
            return self.faces.image(int(chosen))
        images = torch.empty((len(chosen), 3, size, size), dtype=torch.uint8)

        def read(slot: int) -> None:
            images[slot] = self.faces.image(int(chosen[slot]))

        with ThreadPoolExecutor(self.workers) as readers:
            list(readers.map(read, range(len(chosen))))  # the list raises what a reader raised
        return images
