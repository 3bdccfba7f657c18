"""The forms that faces come in: folders of pictures, and data sets that `datasets` opens.

The official CelebAMask-HQ folder; a folder of pictures with `metadata.csv` or `.jsonl`, or of
pictures alone; a data set on the hub or in parquet files, with 40 columns of attributes, a list of
40, or a caption.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    IMAGE_FOLDER,
    as_attributes,
    attribute_columns,
)
from custom_datasets.drawn_faces import MARKER_FILE
from custom_datasets.pictures import Pictures, find_pictures, from_files, image_number
from custom_datasets.splits import split_by_folders, split_number

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
CAPTION_COLUMNS = ("caption", "text")
CELEBA_RATES = {  # shares of CelebA's faces; CelebA-HQ's differ by up to .05
    **{"Male": 0.42, "Young": 0.77, "Smiling": 0.48, "No_Beard": 0.84, "Eyeglasses": 0.07},
    **{"Black_Hair": 0.24, "Blond_Hair": 0.15, "Bangs": 0.15, "Wearing_Hat": 0.05},
}
RATE_TOLERANCE, ENOUGH = 0.2, 1_000  # faces, below which rates tell nothing
WAYS = "; name a folder of faces, or a data set on the hub, with data.source: see docs/data.md"
NAMED = 10  # pictures that are named of those that are left out for one reason


@dataclass
class Copy:
    """A source as it was found, before its faces are recognised."""

    source: str
    pictures: Pictures
    names: list[str]
    left_out: dict[str, str] = field(default_factory=dict)  # name -> reason
    splits: np.ndarray | None = None
    attributes: np.ndarray | None = None
    captions: list[tuple[str, ...]] | None = None
    claimed: np.ndarray | None = None  # official indices, as names or rows claim
    annotation: Path | None = None  # CelebAMask-HQ's file beside the pictures
    is_drawn: bool = False


def is_path(path: Path) -> bool:
    """A data set's id is owner/name, and no folder of this name is there."""
    is_id = not path.is_absolute() and len(path.parts) == 2 and path.parts[0] not in ("~", "..")
    return path.exists() or not is_id


def open_folder(folder: Path) -> Copy:
    """Find out which form a folder has, and open it; nothing is copied.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        ValueError: a table cannot be read, or contradicts itself; it is named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder.resolve()}{WAYS}")
    places = (folder, folder / IMAGE_FOLDER, *folder.glob(f"*/{IMAGE_FOLDER}"))
    official = next((p for p in places if p.name == IMAGE_FOLDER and p.is_dir()), None)
    if official:
        return _open_official(official)
    tables = sorted(path for name in METADATA_FILES for path in folder.rglob(name))
    if tables:
        return _open_tables(folder, tables)
    if next(folder.rglob("*.parquet"), None):
        return open_dataset(str(folder))
    names, left_out = find_pictures(folder)
    _require_pictures(folder, names, left_out)
    beside = next((p for p in (folder, folder.parent) if (p / ATTRIBUTE_FILE).is_file()), None)
    annotation = beside and beside / ATTRIBUTE_FILE
    pictures = from_files(folder, names)
    return Copy(
        str(folder), pictures, names, left_out, split_by_folders(names), annotation=annotation
    )


def _open_official(folder: Path) -> Copy:
    """`CelebA-HQ-img/<index>.jpg`, and the annotation file beside it."""
    found, left_out = find_pictures(folder)
    numbers = {name: image_number(name) for name in found}
    left_out |= {name: "its name is no number" for name in found if numbers[name] is None}
    names = sorted((name for name in found if numbers[name] is not None), key=numbers.__getitem__)
    _require_pictures(folder, names, left_out)
    annotation = folder.parent / ATTRIBUTE_FILE
    return Copy(
        str(folder.parent),
        from_files(folder, names),
        names,
        left_out,
        claimed=np.array([numbers[name] for name in names]),
        annotation=annotation if annotation.is_file() else None,
    )


def _require_pictures(folder: Path, names: list[str], left_out: dict[str, str]) -> None:
    if not names:
        seen = sorted(path.name for path in folder.iterdir())[:5]
        raise FileNotFoundError(
            f"{folder.resolve()} holds no JPEG, PNG or WebP picture; it holds "
            f"{', '.join(seen) or 'nothing'}{reasons_in_lines(left_out)}"
        )


def _open_tables(folder: Path, tables: list[Path]) -> Copy:
    """A folder of pictures as `datasets`' image folders are: `file_name` and further columns."""
    table = pd.concat([_read_table(folder, path) for path in tables], ignore_index=True)
    found, left_out = find_pictures(folder)
    there, listed = set(found), set(table["file_name"])
    left_out |= {name: f"no row in {tables[0].name}" for name in found if name not in listed}
    for name in listed - there:
        left_out.setdefault(name, f"not there, but in {tables[0].name}")
    table = table[table["file_name"].isin(there)]
    captions, attributes = None, None
    columns = attribute_columns(tables[0], table.columns) if not caption_column(table) else []
    if caption := caption_column(table):
        left_out |= dict.fromkeys(table["file_name"][table[caption].isna()], "it has no caption")
        # A picture may have several rows, each with a caption.
        grouped = table.dropna(subset=[caption]).groupby("file_name", sort=False)[caption]
        wordings = {name: _wordings(values) for name, values in grouped}
        table = table.drop_duplicates("file_name")
        table = table[table["file_name"].isin(list(wordings))]
        captions = [wordings[name] for name in table["file_name"]]
        if set(ATTRIBUTES) <= set(table.columns):
            columns = list(ATTRIBUTES)
    elif table["file_name"].duplicated().any():
        name = table["file_name"][table["file_name"].duplicated()].iloc[0]
        raise ValueError(f"{tables[0]}: two rows for {name}")
    if columns:
        attributes = as_attributes(tables[0], table[columns].to_numpy())
    names = table["file_name"].tolist()
    _require_pictures(folder, names, left_out)
    return Copy(
        str(folder),
        from_files(folder, names),
        names,
        left_out,
        split_by_folders(names),
        attributes,
        captions,
        is_drawn=(folder / MARKER_FILE).is_file(),
    )


def _read_table(folder: Path, path: Path) -> pd.DataFrame:
    """A table whose `file_name` is the path from the folder."""
    try:
        if path.suffix == ".csv":  # "NA" may be a word of a caption
            table = pd.read_csv(path, encoding="utf-8-sig", keep_default_na=False, na_values=[""])
        else:
            table = pd.read_json(path, lines=True)
    except ValueError as error:  # not text in UTF-8, or another number of cells in a row
        raise ValueError(f"{path}: {error}") from error
    if "file_name" not in table.columns:
        raise ValueError(
            f"{path} has no column file_name, but {', '.join(map(str, table.columns))}"
        )
    place = path.parent.relative_to(folder)
    return table.assign(file_name=[(place / str(n)).as_posix() for n in table["file_name"]])


def caption_column(columns: Iterable[str]) -> str | None:
    """The column that holds captions; None where there is none."""
    return next((name for name in CAPTION_COLUMNS if name in columns), None)


def _wordings(values: Iterable[object]) -> tuple[str, ...]:
    """Captions, each a text or a list of texts."""
    lists = (value if isinstance(value, list | np.ndarray) else [value] for value in values)
    return tuple(str(text) for texts in lists for text in texts)


def open_dataset(source: str) -> Copy:
    """A data set on the hub, or a folder of parquet files: `datasets` fetches it once, and keeps a
    memory-mapped copy.
    """
    try:
        if not Path(place := _cache_of(source)).is_dir():
            print(f"{source}: datasets keeps the download, and a copy of it in {place}")
        parts = datasets.load_dataset(source)
    except (ConnectionError, FileNotFoundError) as error:
        raise type(error)(f"{error}{WAYS}") from error
    table = datasets.concatenate_datasets(list(parts.values()))
    image = _image_column(source, table.features)
    columns = attribute_columns(source, table.column_names)
    listed = "attributes" if not columns and "attributes" in table.column_names else None
    caption = caption_column(table.column_names)
    wanted = [*columns, *filter(None, (listed, caption))]
    values = table.select_columns(wanted).to_pandas() if wanted else None
    rows = np.flatnonzero(values[caption].notna()) if caption else np.arange(len(table))
    attributes = captions = None
    if columns:
        attributes = as_attributes(source, values[columns].to_numpy())[rows]
    elif listed:
        attributes = as_attributes(source, np.array(values[listed].tolist()))[rows]
        _warn_of_rates(source, attributes)
    if caption:
        captions = [_wordings([value]) for value in values[caption].iloc[rows]]
    missing = set(range(len(table))) - set(rows.tolist())
    table = table.select(rows) if missing else table
    return Copy(
        source,
        Pictures(table.rename_column(image, "image") if image != "image" else table),
        [f"row {row}" for row in rows],
        {f"row {row}": "it has no caption" for row in sorted(missing)},
        _own_split(parts, rows),
        attributes,
        captions,
        claimed=rows if len(parts) == 1 else None,
    )


def _own_split(parts: datasets.DatasetDict, rows: np.ndarray) -> np.ndarray | None:
    """The split of each of these rows; None where there is one alone, or an unusual name."""
    numbers = [split_number(name) for name in parts]
    if len(parts) == 1 or None in numbers:
        return None
    return np.repeat(numbers, [len(part) for part in parts.values()]).astype(np.uint8)[rows]


def is_at_hand(source: str | Path) -> bool:
    """Whether a source can be opened without a download."""
    if is_path(Path(source)):
        return Path(source).is_dir()
    try:
        return Path(_cache_of(str(source))).is_dir()
    except (ConnectionError, FileNotFoundError):
        return False


def _cache_of(source: str) -> str:
    return datasets.load_dataset_builder(source).cache_dir


def _image_column(source: str, features: datasets.Features) -> str:
    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not found:
        raise ValueError(f"{source} has no column of pictures, but {', '.join(features)}")
    return "image" if "image" in found else found[0]


def _warn_of_rates(source: str, attributes: np.ndarray) -> None:
    """A list of 40 does not name its entries: say so if it cannot be in CelebA's order."""
    found = dict(zip(ATTRIBUTES, attributes.mean(axis=0), strict=True))
    wrong = [
        f"{name} {found[name]:.2f} (CelebA {rate:.2f})"
        for name, rate in CELEBA_RATES.items()
        if abs(found[name] - rate) > RATE_TOLERANCE
    ]
    if wrong and len(attributes) >= ENOUGH:
        say_once(
            f"warning: {source} has other attributes than CelebA in its order: {', '.join(wrong)}"
        )


def reasons_in_lines(left_out: dict[str, str]) -> str:
    """Names by reason, one line a reason."""
    lines = []
    for reason in sorted(set(left_out.values())):
        names = [name for name, why in left_out.items() if why == reason]
        more = f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        lines.append(f"\n  {', '.join(names[:NAMED])}{more}: {reason}")
    return "".join(lines)


@functools.cache
def say_once(text: str) -> None:
    """Print a text the first time: a source is opened for each of its splits."""
    print(text)
