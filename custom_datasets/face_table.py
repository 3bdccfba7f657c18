"""What a source of faces holds, as one table, from the columns that it was opened with."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pandas as pd

from custom_datasets.celeba_files import (
    ATTRIBUTES,
    as_attributes,
    attribute_columns,
    caption_column,
)

CELEBA_RATES = {"Male": 0.42, "Young": 0.77, "Smiling": 0.48, "No_Beard": 0.84}  # HQ's within .05
RATE_TOLERANCE, ENOUGH = 0.2, 1_000  # faces, below which rates tell nothing
NAMED = 10  # pictures that are named of those that are left out for one reason


@dataclass
class FaceTable:
    """What a source holds: parallel columns over N faces."""

    source: str
    pictures: datasets.Dataset  # with a column "image", of files
    names: np.ndarray  # str (N,), for messages
    parts: np.ndarray  # str (N,): what the folder, or the part of a data set, is called
    indices: np.ndarray  # int (N,); CelebA-HQ's own where the faces are recognised
    splits: np.ndarray  # uint8 (N,): 0 train, 1 val, 2 test
    split_kind: str  # of `splits.SPLIT_KINDS`
    attributes: np.ndarray | None  # bool (N, 40)
    captions: list[tuple[str, ...]] | None  # the wordings of each face, as the source has them
    left_out: dict[str, str] = field(default_factory=dict)  # name -> reason
    digests: np.ndarray | None = None  # uint8 (N, 16) of the files, by the screening

    def only(self, kept: np.ndarray) -> "FaceTable":
        """The faces at these positions, in this order."""
        columns = ("names", "parts", "indices", "splits", "attributes", "digests")
        chosen = {name: getattr(self, name) for name in columns}
        chosen = {name: values[kept] for name, values in chosen.items() if values is not None}
        pictures = self.pictures.select(kept)
        captions = self.captions and [self.captions[position] for position in kept]
        return dataclasses.replace(self, pictures=pictures, captions=captions, **chosen)

    def leave_out(self, which: np.ndarray, reason: str) -> "FaceTable":
        """The other faces; these, bool (N,), are listed with the reason."""
        self.left_out |= dict.fromkeys(self.names[which].tolist(), reason)
        return self.only(np.flatnonzero(~which))


def as_face_table(
    source: str,
    pictures: datasets.Dataset,
    names: list[str],
    parts: list[str],
    columns: pd.DataFrame,
    left_out: dict[str, str],
    claimed: np.ndarray,
) -> FaceTable:
    """From what was opened to the columns.

    Args:
        claimed: official indices, as far as names or places tell them.
    """
    attributes = captions = None
    caption = caption_column(columns)
    if caption:
        given = zip(names, columns[caption], strict=True)
        captions = [_wordings(f"{source}: {name}", value) for name, value in given]
    elif wanted := attribute_columns(source, columns):
        attributes = as_attributes(source, columns[wanted].to_numpy())
    elif "attributes" in columns:
        attributes = _of_lists(source, names, columns["attributes"].tolist())
    splits = np.zeros(len(names), np.uint8)  # until it is known whose faces they are
    faces = (np.array(names), np.array(parts), claimed, splits, "own", attributes, captions)
    table = FaceTable(source, pictures, *faces, left_out)
    if captions:
        table = table.leave_out(np.array([not each for each in captions]), "it has no caption")
    return table


def _wordings(where: str, value: object) -> tuple[str, ...]:
    """A caption, or a list of captions; empty where there is none.

    Args:
        where: the picture, for the message.

    Raises:
        ValueError: it is something else, such as a number, which nobody wrote as a caption.
    """
    texts = []
    for text in value if isinstance(value, list | np.ndarray) else [value]:
        if isinstance(text, str):
            texts += [text] if text.strip() else []
        elif isinstance(text, list | dict | np.ndarray) or not pd.isna(text):
            raise ValueError(f"{where}: a caption is a text or a list of texts, not {text!r}")
    return tuple(texts)


def _of_lists(source: str, names: list[str], lists: list[Any]) -> np.ndarray:
    """Attributes bool (N, 40) of lists of 40, which do not name their entries."""
    for name, values in zip(names, lists, strict=True):
        if np.shape(values) != (len(ATTRIBUTES),):
            raise ValueError(f"{source}: {name}: attributes are not a list of 40: {values}")
    attributes = as_attributes(source, np.array(lists))
    _warn_of_rates(source, attributes)
    return attributes


def _warn_of_rates(source: str, attributes: np.ndarray) -> None:
    """A list of 40 does not name its entries: say so if it cannot be in CelebA's order."""
    found = dict(zip(ATTRIBUTES, attributes.mean(axis=0), strict=True))
    for name, rate in CELEBA_RATES.items():
        if abs(found[name] - rate) > RATE_TOLERANCE and len(attributes) >= ENOUGH:
            say_once(f"warning: in {source} {found[name]:.2f} are {name}, in CelebA {rate:.2f}")


def reasons_in_lines(left_out: dict[str, str]) -> str:
    """Names by reason, one line a reason."""
    lines = ""
    for reason in sorted(set(left_out.values())):
        names = [name for name, why in left_out.items() if why == reason]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines += f"\n  {', '.join(names[:NAMED])}{more}: {reason}"
    return lines


@functools.cache
def say_once(text: str) -> None:
    """Print a text the first time: a source is opened for each of its splits."""
    print(text)
