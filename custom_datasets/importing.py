"""Brings any copy of CelebA-HQ that carries attributes into the official folder form.

`python -m custom_datasets.importing SOURCE --out data/celeba_hq`, where SOURCE is a folder or a hub
id. One loader then reads all copies alike. Known forms: parquet with `attributes` or 40 columns of
their names (`eurecom-ds/celeba-hq-256`, `flwrlabs/celeba`, `huggan/CelebA-faces-with-attributes`),
StarGAN v2's `{train,val}/{male,female}/<orig_file>`, and plain `<index>.jpg` beside
`list_attr_celeba.txt` and the mapping. Rows are joined by name, never by position.
"""

import argparse
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from config import ROOT
from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    MAPPING_FILE,
    OFFICIAL_COUNT,
    read_attributes,
    read_mapping,
    write_attributes,
    write_partition,
)
from custom_datasets.celeba_hq_dataset import to_rgb
from custom_datasets.splits import (
    SPLIT_KINDS,
    SPLITS,
    split_by_chance,
    split_of_original,
    write_about,
)
from custom_datasets.verification import (
    CELEBA_HQ_RATES,
    CELEBA_RATES,
    check_alignment,
    check_rates,
)

ATTRIBUTE_LIST = "list_attr_celeba.txt"
NUMBERED = re.compile(r"\D*\d+\.(jpe?g|png)", re.IGNORECASE)
CELEBA_COUNTS = (162_770, 19_867, 19_962)
WITH_ATTRIBUTES = "eurecom-ds/celeba-hq-256"

GUIDE = """{state}

Ways to CelebA-HQ with its 40 attributes (for non-commercial research only):
  1. The official folder, CelebAMask-HQ (github.com/switchablenorms/CelebAMask-HQ): unpack it, set
     CELEBA_HQ_DIR to the folder that holds CelebA-HQ-img and CelebAMask-HQ-attribute-anno.txt.
     Nothing has to be imported.
  2. From the hub: make data SOURCE=eurecom-ds/celeba-hq-256
  3. A copy that you have: make data SOURCE=<folder>. Parquet files with attributes; StarGAN v2's
     train|val/male|female; or <index>.jpg with list_attr_celeba.txt and
     CelebA-HQ-to-CelebA-mapping.txt in it or beside it.
Copies with images or captions alone (Ryan-sjtu/celebahq-caption) cannot be used: the captions of
this experiment are made from attributes. CelebA that is not HQ (flwrlabs/celeba, 178x218) can, with
python -m custom_datasets.importing SOURCE --celeba."""


@dataclass(frozen=True)
class Row:
    """One face of a copy."""

    image: Path | Image.Image
    attributes: np.ndarray  # bool (40,)
    original: str | None = None  # CelebA's file name, which tells the official split
    index: int | None = None  # CelebA-HQ's own number
    split: int | None = None  # 0, 1 or 2, where the copy itself is split as CelebA is


@dataclass(frozen=True)
class Imported:
    """What was written."""

    attributes: np.ndarray  # bool (N, 40)
    paths: list[Path]
    splits: list[int]
    is_official: bool  # the split is CelebA's, by identity


def as_attributes(record: Mapping[str, object]) -> np.ndarray | None:
    """The 40 attributes of a parquet record, or None where it carries none."""
    names = {name.lower(): name for name in record}
    if "attributes" in names:
        values = np.asarray(record[names["attributes"]])
    elif all(name.lower() in names for name in ATTRIBUTES):
        values = np.array([record[names[name.lower()]] for name in ATTRIBUTES])
    else:
        return None
    if values.shape != (len(ATTRIBUTES),) or not set(values.tolist()) <= {-1, 0, 1}:
        raise ValueError(f"expected 40 attributes of -1, 0 or 1, got {values.tolist()!r:.80}")
    return values > 0


def _require_attributes(source: str, record: Mapping[str, object]) -> np.ndarray:
    attributes = as_attributes(record)
    if attributes is None:
        raise ValueError(
            f"{source} carries no attributes (its columns: {', '.join(record)}), from which the "
            f"captions are made. {WITH_ATTRIBUTES} does."
        )
    return attributes


def parquet_rows(source: str) -> Iterator[Row]:
    """Faces of a hub data set, or of a folder of parquet files, through `datasets`."""
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    folder = Path(source).expanduser()
    if folder.is_dir():
        files: dict[str, list[str]] = {}
        for path in sorted(folder.rglob("*.parquet")):  # such as train-00000-of-00007.parquet
            files.setdefault(path.name.split("-")[0], []).append(str(path))
        parts = load_dataset("parquet", data_files=files)
    else:
        beginning = next(iter(load_dataset(source, streaming=True).values()))
        _require_attributes(source, next(iter(beginning)))  # before gigabytes are fetched
        parts = load_dataset(source)
    # Only CelebA's own division is by identity; a copy divided otherwise tells nothing.
    is_official = sorted(len(faces) for faces in parts.values()) == sorted(CELEBA_COUNTS)
    numbers = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
    for name, faces in parts.items():
        for record in faces.cast_column("image", ImageFeature()):
            attributes = _require_attributes(source, record)
            split = numbers[name] if is_official else None
            yield Row(record["image"], attributes, record.get("image_id") or None, split=split)


def stargan_rows(folder: Path, attribute_list: Path) -> Iterator[Row]:
    """Faces of StarGAN v2's folders, which bear CelebA's file names."""
    attributes = read_attributes(attribute_list)
    for path in sorted(folder.glob("*/*male/*.jpg")):
        name = f"{path.stem}.jpg"
        if name not in attributes:
            raise ValueError(f"{path}: {attribute_list} has no row for {name}")
        if attributes[name][ATTRIBUTES.index("Male")] != (path.parent.name == "male"):
            raise ValueError(f"{path} lies among the wrong sex: the names are not CelebA's")
        yield Row(path, attributes[name], name)


def plain_rows(folder: Path, attribute_list: Path, mapping: Path) -> Iterator[Row]:
    """Faces named by their CelebA-HQ index, of any extension and with any number of zeros."""
    attributes, originals = read_attributes(attribute_list), read_mapping(mapping)
    paths = [path for path in folder.iterdir() if NUMBERED.fullmatch(path.name)]
    indexed = {int(re.search(r"(\d+)\.", path.name)[1]): path for path in paths}
    if len(indexed) != len(paths):
        raise ValueError(f"{folder}: two images have one number; keep one form of each")
    beyond = [index for index in indexed if index not in originals]
    if beyond:
        raise ValueError(
            f"{folder}: {beyond[0]} is no index of CelebA-HQ (0 to {OFFICIAL_COUNT - 1}); does the "
            "copy count from 1?"
        )
    missing = [name for name in map(originals.get, indexed) if name not in attributes]
    if missing:
        raise ValueError(f"{attribute_list} has no row for {missing[0]}, named in {mapping}")
    for index, path in sorted(indexed.items()):
        yield Row(path, attributes[originals[index]], originals[index], index)


def recognise(source: str, attribute_list: Path | None, mapping: Path | None) -> Iterable[Row]:
    """The rows of whatever form the source has.

    Raises:
        FileNotFoundError, ValueError: no known form, or a file that it needs is missing.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            return parquet_rows(source)
        raise FileNotFoundError(f"{source} is neither a folder nor a hub id")
    if next(folder.rglob("*.parquet"), None):
        return parquet_rows(source)
    attribute_list = attribute_list or _find(folder, ATTRIBUTE_LIST)
    if next(folder.glob("*/*male/*.jpg"), None):
        return stargan_rows(folder, attribute_list)
    images = next(
        (p for p in (folder, folder / IMAGE_FOLDER, folder / "images") if _has_images(p)), None
    )
    if images is None:
        raise ValueError(f"{folder} holds no form of CelebA-HQ that is known here")
    return plain_rows(images, attribute_list, mapping or _find(folder, MAPPING_FILE))


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(NUMBERED.fullmatch(path.name) for path in folder.iterdir())


def _find(folder: Path, name: str) -> Path:
    for place in (folder, folder.parent):
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(
        f"{folder} carries no attributes by itself: put {name} into it, or name the file on the "
        f"command line. {WITH_ATTRIBUTES} carries them."
    )


def split_of(row: Row, number: int) -> int:
    """0 train, 1 val, 2 test: CelebA's own where it can be known, else 80/10/10 by a fixed hash."""
    if row.split is not None:
        return row.split
    return split_by_chance(number) if row.original is None else split_of_original(row.original)


def write_official(rows: Iterable[Row], out: Path) -> Imported:
    """Write rows in the official form. Images that are files already are linked, not copied."""
    (out / IMAGE_FOLDER).mkdir(parents=True)
    paths, table, splits, is_official = [], [], [], True
    for number, row in enumerate(rows):
        index = number if row.index is None else row.index
        path = out / IMAGE_FOLDER / f"{index}.jpg"
        if isinstance(row.image, Path):
            path.symlink_to(row.image.resolve())
        else:
            to_rgb(row.image).save(path, quality=98, subsampling=0)
        paths.append(path)
        splits.append(split_of(row, number))
        is_official &= row.split is not None or row.original is not None
        table.append((index, row.original or f"row{number:06d}.jpg", row.attributes))
    if not paths:
        raise ValueError("the source holds no face")
    indices, originals, rows_of = zip(*table, strict=True)
    names = [path.name for path in paths]
    write_attributes(out, dict(zip(names, rows_of, strict=True)))
    write_partition(out, indices, originals, splits)
    write_about(out, "identity" if is_official else "chance")
    return Imported(np.stack([row[2] for row in table]), paths, splits, is_official)


def import_copy(
    source: str,
    out: Path,
    attribute_list: Path | None = None,
    mapping: Path | None = None,
    is_hq: bool = True,
) -> list[str]:
    """Import and verify a copy; returns what was found, as lines.

    Raises:
        FileExistsError: `out` is there already.
        FileNotFoundError, ValueError: no known form, something missing, or attributes that are not
            those of the images; `out` is not made.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: name another folder with --out")
    unfinished = out.with_name(f"{out.name}.importing")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows = recognise(source, attribute_list, mapping)
    try:
        written = write_official(rows, unfinished)
        rates = check_rates(written.attributes, CELEBA_HQ_RATES if is_hq else CELEBA_RATES)
        auc = check_alignment(written.paths, written.attributes)
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    counts = ", ".join(f"{written.splits.count(i)} {name}" for i, name in enumerate(SPLITS))
    kind = SPLIT_KINDS["identity" if written.is_official else "chance"]
    probe = "too few faces to probe" if auc is None else f"sex read off thumbnails, AUC {auc:.2f}"
    return [f"{len(written.paths)} faces: {counts} (split {kind})", probe, *rates]


def describe_folder(folder: Path) -> str:
    """What lies in a folder already, in a sentence."""
    missing = [name for name in (IMAGE_FOLDER, ATTRIBUTE_FILE) if not (folder / name).exists()]
    if missing:
        return f"{folder} lacks {' and '.join(missing)}."
    count = sum(1 for path in (folder / IMAGE_FOLDER).iterdir() if NUMBERED.fullmatch(path.name))
    return f"{folder} holds {count} of {OFFICIAL_COUNT} images and their attributes."


def main() -> None:
    """Import the copy named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m custom_datasets.importing", description=__doc__
    )
    parser.add_argument("source", nargs="?", help="a folder, or a hub id; none: how to get one")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "celeba_hq")
    parser.add_argument("--attributes", type=Path, help=f"CelebA's {ATTRIBUTE_LIST}")
    parser.add_argument("--mapping", type=Path, help=MAPPING_FILE)
    parser.add_argument("--celeba", action="store_true", help="the source is CelebA, not CelebA-HQ")
    given = parser.parse_args()
    if not given.source:
        folder = Path(os.environ.get("CELEBA_HQ_DIR") or given.out)
        print(GUIDE.format(state=describe_folder(folder)))
        return
    lines = import_copy(given.source, given.out, given.attributes, given.mapping, not given.celeba)
    print("\n".join([*lines, f"CELEBA_HQ_DIR={given.out}"]))


if __name__ == "__main__":
    main()
