"""One door to faces: whatever form they come in, they become one table.

Faces of CelebA-HQ are recognised by their content in any form, get their attributes by their
official index where the form has none, and are divided by identity as CelebA is. Others are divided
as their source divides them, else by chance.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

import config
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    OFFICIAL_COUNT,
    as_attributes,
    read_attributes,
)
from custom_datasets.forms import (
    Copy,
    is_path,
    open_dataset,
    open_folder,
    reasons_in_lines,
    say_once,
)
from custom_datasets.pictures import Pictures, image_number
from custom_datasets.recognition import (
    UNKNOWN,
    attribute_digests,
    known_digests,
    official_indices,
)
from custom_datasets.splits import NO_SPLIT, official_split, split_by_chance
from files import replacing


@dataclass(frozen=True)
class FaceTable:
    """What a source holds: parallel columns over N faces, in the order of `indices`."""

    source: str
    pictures: Pictures
    rows: np.ndarray  # int (N,), numbers in `pictures`
    names: np.ndarray  # str (N,), for messages
    indices: np.ndarray  # int (N,); CelebA-HQ's own where the faces are recognised
    splits: np.ndarray  # uint8 (N,): 0 train, 1 val, 2 test
    split_kind: str  # of `splits.SPLIT_KINDS`
    attributes: np.ndarray | None  # bool (N, 40)
    captions: list[tuple[str, ...]] | None  # the wordings of each face, as the source has them


def open_source(source: str | Path) -> FaceTable:
    """Open a folder, or a data set on the hub.

    Raises:
        FileNotFoundError: there is no such folder, no picture in it, or no such data set.
        ConnectionError: the hub does not answer.
        ValueError: nothing tells what the pictures show, or a table contradicts itself.
    """
    path = Path(source)
    found = open_folder(path) if is_path(path) else open_dataset(str(source))
    return _identify(found)


def _identify(found: Copy) -> FaceTable:
    """Recognise the faces of CelebA-HQ, and divide the faces."""
    count, pictures = len(found.names), found.pictures
    indices = None
    if not found.is_drawn:
        indices = official_indices(pictures.file, count, found.claimed, pictures.stamp)
    opened = _others(found) if indices is None else _official(found, indices)
    if found.left_out:
        say_once(
            f"left out of {opened.source}, {len(found.left_out)} of "
            f"{len(opened.rows) + len(found.left_out)}:{reasons_in_lines(found.left_out)}"
        )
    return opened


def _others(found: Copy) -> FaceTable:
    """Faces that are not CelebA-HQ's."""
    attributes, kept = found.attributes, np.arange(len(found.names))
    if attributes is None and found.annotation:
        attributes, kept = _annotated_by_name(found)
    if attributes is None and found.captions is None:
        raise ValueError(
            f"{found.source} holds pictures that are not CelebA-HQ's, and nothing tells what they "
            "show: put a metadata.csv beside them, with the columns file_name and caption"
        )
    splits, kind = found.splits, "drawn" if found.is_drawn else "own"
    if splits is None:
        splits, kind = split_by_chance(found.names), "chance"
    return FaceTable(
        found.source,
        found.pictures,
        kept,
        np.array(found.names)[kept],
        kept,
        splits[kept],
        kind,
        attributes,
        found.captions,
    )


def _annotated_by_name(found: Copy) -> tuple[np.ndarray, np.ndarray]:
    """Attributes (n, 40) of the pictures that have a row in the annotation file, and which."""
    names, values = read_attributes(found.annotation)
    rows = {name.partition(".")[0]: row for row, name in enumerate(names)}
    at = [rows.get(Path(name).stem.lstrip("0") or "0", UNKNOWN) for name in found.names]
    kept = np.flatnonzero(np.array(at) != UNKNOWN)
    missing = set(range(len(at))) - set(kept.tolist())
    found.left_out |= {found.names[i]: f"no row in {ATTRIBUTE_FILE}" for i in sorted(missing)}
    return values[np.array(at)[kept]], kept


def _official(found: Copy, indices: np.ndarray) -> FaceTable:
    """Faces of CelebA-HQ, in the order of their indices."""
    known = indices != UNKNOWN
    found.left_out |= {
        found.names[i]: "no face of CelebA-HQ" for i in np.flatnonzero(~known).tolist()
    }
    splits = official_split()[indices]
    kept = np.flatnonzero(known & (splits != NO_SPLIT))
    kept = kept[np.argsort(indices[kept], kind="stable")]
    captions, attributes = found.captions, found.attributes
    if attributes is not None:
        attributes = attributes[kept]
    else:
        try:
            values, has_row = official_attributes(found.annotation)
            found.left_out |= {
                found.names[i]: f"no row in {ATTRIBUTE_FILE}" for i in kept[~has_row[indices[kept]]]
            }
            kept = kept[has_row[indices[kept]]]
            attributes = values[indices[kept]]
        except ConnectionError:
            if captions is None:
                raise
    if attributes is not None:
        _warn_of_labels(found, attributes, indices[kept])
    return FaceTable(
        found.source,
        found.pictures,
        kept,
        np.array(found.names)[kept],
        indices[kept],
        splits[kept],
        "identity",
        attributes,
        captions and [captions[row] for row in kept],
    )


def official_attributes(annotation: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The attributes of the 30,000 official faces, bool (30000, 40), and which of them are known,
    bool (30000,): from an annotation file on this machine, else the column of the hub's data set
    alone, without its pictures, kept.

    Raises:
        ConnectionError: there is no such file, and the hub does not answer.
        ValueError: they are of other faces.
    """
    homes = [os.environ.get("CELEBA_HQ_DIR"), config.ROOT / "data" / "celeba_hq"]
    places = [annotation, *(Path(home) / ATTRIBUTE_FILE for home in homes if home)]
    if place := next((place for place in places if place and place.is_file()), None):
        names, found = read_attributes(place)
        numbers = np.array([image_number(name) for name in names])
        values = np.zeros((OFFICIAL_COUNT, len(ATTRIBUTES)), bool)
        values[numbers] = found
        return values, np.isin(np.arange(OFFICIAL_COUNT), numbers)
    record = config.ROOT / "data" / "celeba_hq_attributes.npy"
    values = np.load(record) if record.is_file() else _fetch_attributes(record)
    return values, np.ones(len(values), bool)


def _fetch_attributes(record: Path) -> np.ndarray:
    rows = datasets.load_dataset(
        config.CELEBA_HQ, split="train", streaming=True, columns=["attributes"]
    )
    values = as_attributes(config.CELEBA_HQ, np.array([row["attributes"] for row in rows]))
    if not np.array_equal(attribute_digests(values), known_digests()):
        raise ValueError(f"{config.CELEBA_HQ} is no longer in CelebA-HQ's order")
    with replacing(record) as temporary, temporary.open("wb") as opened:
        np.save(opened, values)
    return values


def _warn_of_labels(found: Copy, attributes: np.ndarray, indices: np.ndarray) -> None:
    wrong = np.flatnonzero(attribute_digests(attributes) != known_digests()[indices])
    if len(wrong):
        say_once(
            f"warning: {found.source} gives {len(wrong)} of {len(indices)} faces other attributes "
            f"than CelebA-HQ does, such as CelebA-HQ's {indices[wrong[0]]}"
        )
