"""The forms in which CelebA-HQ is handed on, each read by an adapter.

A face is joined with its attributes by its name, never by its position. To read another form, write
an `Adapter` (see `sources`) and add it to `ADAPTERS`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TypeVar

import numpy as np

from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    MAPPING_FILE,
    OFFICIAL_COUNT,
    File,
    has_attribute_header,
    read_attributes,
    read_lines,
    read_mapping,
)
from custom_datasets.parquet import WITH_ATTRIBUTES, parquet_faces
from custom_datasets.sources import IMAGE_SUFFIXES, Adapter, Row, Source
from custom_datasets.verification import check_table, is_in_official_order

ATTRIBUTE_LISTS = ("list_attr_celeba.txt", "list_attr_celeba.csv")
IMAGE_FOLDERS = (IMAGE_FOLDER, "img_align_celeba")
NUMBERED = re.compile(r"\D*([0-9]+)")  # a stem: "7", "00007" or "imgHQ00007"
CELEBA_STEM = re.compile(r"[0-9]{6}")

Rows = dict[str, np.ndarray]
Key = TypeVar("Key")


def stargan_faces(source: Source) -> Iterator[Row] | None:
    """StarGAN v2's `{train,val}/{male,female}/<CelebA's file name>`.

    Raises:
        FileNotFoundError: no attribute file.
        ValueError: a face without a row, or one in the folder of the wrong sex; it is named.
    """
    images = [
        file
        for file in source.with_suffix(*IMAGE_SUFFIXES)
        if _folder(file).name.lower() in ("male", "female")
    ]
    if not images:
        return None
    place, rows = _labels(source)
    return _stargan_rows(images, place, rows)


def _stargan_rows(images: Sequence[File], place: File, rows: Rows) -> Iterator[Row]:
    for row in _by_original(images, place, rows):
        if row.attributes is None:
            yield row
            continue
        is_male = row.attributes[ATTRIBUTES.index("Male")]
        if is_male != (_folder(row.image).name.lower() == "male"):
            raise ValueError(f"{row.image} is in the wrong folder: the names are not CelebA's")
        yield row


def labelled_faces(source: Source) -> Iterator[Row] | None:
    """Images in one folder and an attribute file in or next to it, joined by name.

    The official folder; CelebA as published; and images named by CelebA-HQ's index with CelebA's
    attribute list and the mapping between the two.

    Raises:
        FileNotFoundError: no attribute file, or no mapping where it is needed.
        ValueError: an image without a row, or two of one number; they are named.
    """
    images = source.with_suffix(*IMAGE_SUFFIXES)
    if not images:
        return None
    place, rows = _labels(source)
    if not all(CELEBA_STEM.fullmatch(PurePath(name).stem) for name in rows):
        if place.name == ATTRIBUTE_FILE or _is_official(rows):
            return _by_index(_numbered(images), place, rows)
        return _by_name(images, place, rows)
    numbered = _numbered(images)
    mapping = source.mapping or source.find(MAPPING_FILE)
    has_celebas_names = all(CELEBA_STEM.fullmatch(_stem(file)) for file in numbered.values())
    # Beside the mapping, six digits could also be an index, but not one of 30,000 or more.
    if has_celebas_names and (not mapping or not source.is_hq or max(numbered) >= OFFICIAL_COUNT):
        return _by_original(list(numbered.values()), place, rows)
    if mapping is None:
        raise FileNotFoundError(
            f"{source.place}: {place.name} names the faces as CelebA does, the images are named "
            f"{next(iter(numbered.values())).name}: put {MAPPING_FILE} into the folder, or name "
            "it with --mapping"
        )
    return _through_mapping(numbered, place, rows, mapping)


def _by_index(numbered: dict[int, File], place: File, rows: Rows) -> Iterator[Row]:
    by_index = {_key(name): values for name, values in rows.items()}
    _require_indices(numbered, by_index, place)
    for index, file in numbered.items():
        yield _row(file, by_index.get(index), place, index=index)


def _through_mapping(
    numbered: dict[int, File], place: File, rows: Rows, mapping: File
) -> Iterator[Row]:
    originals = read_mapping(mapping)
    _require_indices(numbered, originals, mapping)
    for index, file in numbered.items():
        original = originals.get(index)
        table = place if original else mapping
        yield _row(file, rows.get(original), table, original=original, index=index)


def _by_original(images: Iterable[File], place: File, rows: Rows) -> Iterator[Row]:
    for file in images:
        original = f"{_stem(file)}.jpg"
        yield _row(file, rows.get(original), place, original=original)


def _by_name(images: Iterable[File], place: File, rows: Rows) -> Iterator[Row]:
    by_key = {_key(name): values for name, values in rows.items()}
    named = _unique((_key(file.name), file) for file in images)
    for key, file in named.items():
        yield _row(file, by_key.get(key), place)


def _row(file: File, attributes: np.ndarray | None, table: File, **known: object) -> Row:
    """The row of an image; one without attributes is left out by name, the others are kept."""
    why_not = "" if attributes is not None else f"{table.name} has no row for it"
    return Row(file, attributes, file.name, why_not=why_not, **known)


def _key(name: str) -> int | str:
    """What names of one face have in common: 7 for "7.jpg" and "00007.webp"."""
    stem = PurePath(name).stem
    return int(stem) if stem.isdecimal() else stem


def _require_indices(numbered: dict[int, File], known: Iterable[int], place: File) -> None:
    """Refuse images beyond the last row: where numbers are shifted, one is. Gaps are harmless."""
    last = max(numbered)
    if last > max(known):
        raise ValueError(
            f"{numbered[last]}: {last} is no index of CelebA-HQ (0 to {OFFICIAL_COUNT - 1}) that "
            f"{place} has a row for; does the copy count from 1? If the table is not whole, "
            "complete it, or remove the image"
        )


def _is_official(rows: Rows) -> bool:
    """Whether rows named by numbers from 0 up are those of CelebA-HQ's faces, in their order."""
    stems = [PurePath(name).stem for name in rows]
    in_sequence = all(stem.isdecimal() and int(stem) == i for i, stem in enumerate(stems))
    return in_sequence and is_in_official_order(np.stack(list(rows.values())))


def _numbered(images: Sequence[File]) -> dict[int, File]:
    """The images that have a number, by it and in its order."""
    for name in IMAGE_FOLDERS:
        images = [file for file in images if _folder(file).name == name] or images
    found = ((NUMBERED.fullmatch(_stem(file)), file) for file in images)
    numbered = _unique((int(match[1]), file) for match, file in found if match)
    if not numbered:
        raise ValueError(
            f"the images are not named by number, as in CelebA and CelebA-HQ, but {images[0].name}"
        )
    return dict(sorted(numbered.items()))


def _unique(named: Iterable[tuple[Key, File]]) -> dict[Key, File]:
    """Images by what identifies their face; raises where two have the same."""
    images: dict[Key, File] = {}
    for key, file in named:
        if key in images:
            raise ValueError(
                f"two images have one number or name, {images[key]} and {file}: keep one form of "
                "each, or name the folder that holds the faces"
            )
        images[key] = file
    return images


def _labels(source: Source) -> tuple[File, Rows]:
    """The attribute file of a copy, and its rows, checked where the file is whole."""
    place = source.attribute_list or source.find(*_preferred_lists(source)) or _other_list(source)
    if place is None:
        raise FileNotFoundError(
            f"{source.place} carries no attributes by itself: {_seen_tables(source)}. Put "
            f"CelebAMask-HQ's {ATTRIBUTE_FILE} or CelebA's {ATTRIBUTE_LISTS[0]} into it, or name "
            f"the file with --attributes. {WITH_ATTRIBUTES} carries them.{source.unread()}"
        )
    rows = read_attributes(place)
    check_table(str(place), rows)
    return place, rows


def _preferred_lists(source: Source) -> tuple[str, ...]:
    official, lists = (ATTRIBUTE_FILE,), ATTRIBUTE_LISTS
    return official + lists if source.is_hq else lists + official


def _other_list(source: Source) -> File | None:
    """The only table in the copy that has a column for each of the 40 attributes."""
    tables = source.with_suffix(".csv")
    found = [table for table in tables if has_attribute_header(read_lines(table))]
    return found[0] if len(found) == 1 else None


def _seen_tables(source: Source) -> str:
    names = [file.name for file in source.with_suffix(".csv", ".txt")]
    if not names:
        return "it has no table"
    return f"not one table ({', '.join(names[:3])}) has the 40 attributes, or several have"


def _stem(file: File) -> str:
    return PurePath(file.name).stem


def _folder(file: File) -> PurePath:
    return PurePath(str(file)).parent


ADAPTERS: tuple[Adapter, ...] = (parquet_faces, stargan_faces, labelled_faces)


def recognise(source: Source) -> Iterable[Row]:
    """The rows of a copy, by the first adapter that knows its form.

    Raises:
        FileNotFoundError, ValueError: none does, or a file that it needs is missing.
    """
    for adapter in ADAPTERS:
        rows = adapter(source)
        if rows is not None:
            return rows
    seen = ", ".join(file.name for file in source.files[:5]) or "no file of a kind that is read"
    raise ValueError(
        f"{source.place} holds no form of CelebA-HQ that is known here: it has {seen}."
        f"{source.unread()}"
    )
