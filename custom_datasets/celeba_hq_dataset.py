"""Faces with their 40 attributes or a caption, and the split by identity of CelebA-HQ.

A thin class over one `datasets.Dataset`; `sources` opens every form that faces come in.
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from custom_datasets.captions import Caption, compose
from custom_datasets.face_table import FaceTable
from custom_datasets.images import ImageFile, image_file, read_image, to_model_range, to_rgb
from custom_datasets.sources import open_source
from custom_datasets.splits import SPLITS

__all__ = ["CelebAHQ", "Face", "read_image", "to_model_range", "to_rgb"]


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
        self.image_size = image_size
        self.split: str | None = None
        self._hold(open_source(source))
        if split is not None:
            vars(self).update(vars(self.of_split(split)))

    def _hold(self, table: FaceTable) -> None:
        self.table, self.source, self.split_kind = table, table.source, table.split_kind
        self.names, self.indices, self.splits = table.names, table.indices, table.splits
        self.attributes, self.given_captions = table.attributes, table.captions
        self.counts = {name: int((self.splits == i).sum()) for i, name in enumerate(SPLITS)}

    def __len__(self) -> int:
        return len(self.names)

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
        assert self.attributes is not None  # a source has one or the other
        return compose(
            self.attributes[position].tolist(), int(self.indices[position]), wording, seed
        )

    def file(self, position: int) -> ImageFile:
        """The image's file, as Pillow opens it: a path, or its content."""
        return image_file(self.table.pictures, position)

    def image(self, position: int) -> torch.Tensor:
        """The image, uint8 (3, S, S)."""
        name = f"{self.names[position]} of {self.source}"
        return read_image(self.file(position), self.image_size, name)

    def images(self, which: Any = slice(None), workers: int = 4) -> torch.Tensor:
        """The images at these positions, any index of a numpy array, uint8 (n, 3, S, S); all by
        default.
        """
        positions = np.arange(len(self))[which].tolist()
        images = torch.empty((len(positions), 3, *[self.image_size] * 2), dtype=torch.uint8)

        def read(slot: int) -> None:
            images[slot] = self.image(positions[slot])

        with ThreadPoolExecutor(max(1, workers)) as readers:
            list(readers.map(read, range(len(positions))))  # the list raises what a reader raised
        return images

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
        chosen.split, chosen.counts = split, self.counts
        return chosen

    def without(self, positions: Sequence[int] | np.ndarray) -> "CelebAHQ":
        """The same faces but those at these positions."""
        fewer = copy.copy(self)
        fewer._hold(self.table.only(np.setdiff1d(np.arange(len(self)), positions)))
        return fewer

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return (
            f"CelebAHQ({self.source!r}, split={self.split!r}): {len(self)} faces at "
            f"{self.image_size} px; the source holds {counts}"
        )
