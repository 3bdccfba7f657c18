"""Copies of CelebA and CelebA-HQ as parquet, the form of data sets on the hub.

Known are `eurecom-ds/celeba-hq-256` (a list of attributes), `flwrlabs/celeba` and
`huggan/CelebA-faces-with-attributes` (a column each). The image column is found by its type, under
any name, and its bytes are handed on as they are.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from custom_datasets.celeba_files import ATTRIBUTES, File, attribute_name
from custom_datasets.sources import Row, Source

WITH_ATTRIBUTES = "eurecom-ds/celeba-hq-256"
CELEBA_COUNTS = (162_770, 19_867, 19_962)  # train, val, test
CELEBA_HQ_COUNTS = (24_183, 2_993, 2_824)
PARTS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
CELEBA_NAME = re.compile(r"[0-9]{6}\.(jpg|png)")
ROWS_AT_ONCE = 64  # in memory


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    attributes: tuple[str, ...]  # one that holds a list, or 40 in the order of ATTRIBUTES
    original: str | None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.image, *self.attributes, *([self.original] if self.original else [])]


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Which columns hold images, attributes and CelebA's file names.

    Args:
        where: the file or data set, for the message.

    Raises:
        ValueError: no images, several columns of images, or no attributes; the columns are listed.
    """
    others = [name for name in schema.names if attribute_name(name) not in ATTRIBUTES]
    listed = f"its columns: {', '.join(others)}"
    listed += " and attributes" if len(others) < len(schema) else ""
    images = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in images if name.lower() in ("image", "img", "jpg")]
    if len(images) > 1 and len(named) == 1:
        images = named
    if len(images) != 1:
        what = "no images" if not images else f"several columns of images ({', '.join(images)})"
        raise ValueError(f"{where} has {what} ({listed})")
    lower = {name.lower(): name for name in schema.names}
    columns = {attribute_name(name): name for name in schema.names}
    if "attributes" in lower:
        attributes: tuple[str, ...] = (lower["attributes"],)
    elif set(ATTRIBUTES) <= set(columns):
        attributes = tuple(columns[name] for name in ATTRIBUTES)
    else:
        raise ValueError(
            f"{where} carries no attributes ({listed}), from which the captions are made. "
            f"{WITH_ATTRIBUTES} does."
        )
    return Columns(images[0], attributes, lower.get("image_id"))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Bytes alone, or a struct of bytes and path as the `datasets` library writes images."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def parquet_faces(source: Source) -> Iterator[Row] | None:
    """The rows of all parquet files; see `sources.Adapter`.

    Raises:
        ValueError: a file is damaged, or lacks images or attributes; it is named.
    """
    shards = source.with_suffix(".parquet")
    if not shards:
        return None
    counts: Counter[str] = Counter()
    for shard in shards:
        with shard.open("rb") as file:
            opened = _open(shard, file)
            find_columns(opened.schema_arrow, str(shard))
            counts[_part(shard)] += opened.metadata.num_rows
    # Only CelebA's own division is by identity; a copy divided otherwise tells nothing.
    divided = sorted(counts.values()) in (sorted(CELEBA_COUNTS), sorted(CELEBA_HQ_COUNTS))
    is_official = divided and set(counts) <= set(PARTS)
    return _rows(shards, is_official)


def _open(shard: File, file: object) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shard} is no whole parquet file ({error}): fetch it again") from error


def _part(shard: File) -> str:
    """The split that a file's name or folder tells: train-00000-of-00007.parquet, test/0.parquet"""
    path = PurePath(str(shard))
    candidates = (path.stem.split("-")[0], path.parent.name)
    return next((name for name in candidates if name in PARTS), candidates[0])


def _rows(shards: Sequence[File], is_official: bool) -> Iterator[Row]:
    for shard in shards:
        split = PARTS[_part(shard)] if is_official else None
        with shard.open("rb") as file:
            opened = _open(shard, file)
            columns = find_columns(opened.schema_arrow, str(shard))
            for number, record in enumerate(_records(opened, columns, str(shard))):
                name = f"{shard.name}, row {number}"
                image = _image(record[columns.image], Path(str(shard)).parent)
                values = [record[column] for column in columns.attributes]
                original = _celebas_name(record[columns.original]) if columns.original else None
                try:
                    attributes, why_not = as_attributes(_listed(values)), ""
                except ValueError as error:
                    attributes, why_not = None, str(error)
                yield Row(image, attributes, name, original, split=split, why_not=why_not)


def _records(opened: pq.ParquetFile, columns: Columns, where: str) -> Iterator[dict[str, object]]:
    batches = opened.iter_batches(ROWS_AT_ONCE, columns=columns.names)
    try:
        for batch in batches:
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{where} is damaged ({error}): download it again") from error


def _image(value: object, folder: Path) -> bytes | Path:
    """The bytes of an image, or its file, relative to the folder of the shard."""
    if isinstance(value, dict):
        if not value["bytes"] and value.get("path"):
            return folder / str(value["path"])
        value = value["bytes"]
    return value or b""


def _celebas_name(value: object) -> str | None:
    return str(value) if CELEBA_NAME.fullmatch(str(value)) else None


def _listed(values: list[object]) -> list[object]:
    """The values of 40 columns, or of one that holds a list, values by name, or the names of what
    a face has.
    """
    if len(values) > 1:
        return values
    held = values[0]
    if isinstance(held, dict):
        named = {attribute_name(name): value for name, value in held.items()}
        return [named.get(name) for name in ATTRIBUTES]
    names = {attribute_name(item) for item in held or () if isinstance(item, str)}
    if names and names <= set(ATTRIBUTES):
        return [name in names for name in ATTRIBUTES]
    return list(held or ())


def as_attributes(values: Sequence[object]) -> np.ndarray:
    """Forty numbers or booleans as bool (40,).

    Raises:
        ValueError: others than 40 values of -1 or 0 and 1.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != len(ATTRIBUTES) or not set(numbers) <= {-1.0, 0.0, 1.0}:
        raise ValueError(f"expected 40 attributes of -1, 0 or 1, got {values!r:.80}")
    return np.array(numbers) > 0
