"""The text files that come with CelebA and CelebA-HQ: attributes, mapping, partition.

Reads them in every form in which they are handed on, and writes them in the official one. The
attribute file comes as CelebAMask-HQ's `CelebAMask-HQ-attribute-anno.txt`, as CelebA's
`list_attr_celeba.txt`, and with commas as Kaggle's `list_attr_celeba.csv`.
"""

import codecs
import csv
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

import files

IMAGE_FOLDER = "CelebA-HQ-img"
ATTRIBUTE_FILE = "CelebAMask-HQ-attribute-anno.txt"
MAPPING_FILE = "CelebA-HQ-to-CelebA-mapping.txt"
PARTITION_FILE = "list_eval_partition.txt"
OFFICIAL_COUNT = 30_000

ATTRIBUTES: tuple[str, ...] = tuple(
    (
        "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
        "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses "
        "Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache "
        "Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks "
        "Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick "
        "Wearing_Necklace Wearing_Necktie Young"
    ).split()
)

# A file on disk or inside a zip archive; both have name, parent, open and read_bytes.
File = Path | zipfile.Path
Key = TypeVar("Key", int, str)

_NUMBERED_IMAGE = re.compile(r"([0-9]+)\.(jpe?g|png|webp)", re.IGNORECASE)
_SIGNS = ({"-1", "1"}, {"0", "1"}, {"False", "True"})  # a file uses one of these pairs
_SPELLINGS = {  # as pandas and spreadsheets write them
    **{"1.0": "1", "0.0": "0", "-1.0": "-1"},
    **{"TRUE": "True", "true": "True", "FALSE": "False", "false": "False"},
}


def image_number(name: str) -> int | None:
    """The number of an image file: 7 for "7.jpg", "00007.PNG" or "7.webp"; None for other files."""
    found = _NUMBERED_IMAGE.fullmatch(name)
    return int(found[1]) if found else None


def read_lines(path: File) -> list[str]:
    """Lines of a text file, with either kind of line end, with or without a byte order mark.

    Raises:
        ValueError: the file is not text in UTF-8, nor in UTF-16 with a byte order mark.
    """
    data = path.read_bytes()
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}. Download it again.") from error


def _delimiter(line: str) -> str | None:
    """What separates the cells of a line: a comma, a semicolon (some spreadsheets), or space."""
    found = max(",;", key=line.count)
    return found if found in line else None


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def attribute_name(text: str) -> str:
    """The attribute that a text names, such as "Wavy Hair" or "wavy_hair"; else the text."""
    return _BY_PLAIN_NAME.get(_plain_name(text), text)


def _plain_name(text: str) -> str:
    return re.sub(r"[\s-]+", "_", text.replace("'", "")).lower()


_BY_PLAIN_NAME = {_plain_name(name): name for name in ATTRIBUTES}


def _header(line: str) -> list[str]:
    return [attribute_name(cell) for cell in _cells(line, _delimiter(line))]


def has_attribute_header(lines: Sequence[str]) -> bool:
    """Whether one of the first two lines holds the 40 attribute names."""
    return any(set(ATTRIBUTES) <= set(_header(line)) for line in lines[:2])


def read_attributes(
    path: File, key: Callable[[str], Key | None] = str
) -> dict[Key, np.ndarray]:  # bool (40,) each, in the order of ATTRIBUTES
    """Read an attribute file into {key(image name): attributes}.

    Columns are found by their names. A line with the number of rows may come first.

    Args:
        key: makes a key of an image's name; None refuses the name.

    Raises:
        ValueError: header, row length, values or the number of rows are not as announced, or two
            rows have one key; the line is named.
    """
    lines = read_lines(path)
    rows: dict[Key, np.ndarray] = {}
    for number, name, values in _attribute_rows(path, lines):
        found = key(name)
        if found is None:
            raise ValueError(f"{path}:{number}: {name!r} is not the name of an image, <index>.jpg")
        if found in rows:
            raise ValueError(f"{path}:{number}: a second row for {name}")
        rows[found] = values
    announced = lines[0].strip()
    if not has_attribute_header(lines[:1]) and announced != str(len(rows)):
        raise ValueError(f"{path}: line 1 announces {announced!r} rows, {len(rows)} follow")
    return rows


def _attribute_rows(path: File, lines: list[str]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Line number, image name and attributes of each row."""
    if not has_attribute_header(lines):
        raise ValueError(
            f"{path}: neither line 1 nor line 2 holds CelebA's 40 attribute names. Use the "
            f"{ATTRIBUTE_FILE} of CelebAMask-HQ or CelebA's list_attr_celeba.txt."
        )
    first = 1 if has_attribute_header(lines[:1]) else 2
    delimiter, header = _delimiter(lines[first - 1]), _header(lines[first - 1])
    if len(header) == len(ATTRIBUTES):
        header = ["image", *header]  # the official header does not name the first column
    columns = [header.index(name) for name in ATTRIBUTES]
    others = [i for i, cell in enumerate(header) if cell not in ATTRIBUTES]
    # pandas writes the number of the row under an empty name, and reads it as "Unnamed: 0".
    named = [i for i in others if header[i] and not header[i].startswith("Unnamed")]
    name_column = (named or others)[0]
    seen: set[str] = set()
    for number, line in enumerate(lines[first:], start=first + 1):
        cells = _cells(line, delimiter)
        if not any(cells):
            continue
        values = [cells[i] for i in columns] if len(cells) == len(header) else [""]
        values = [_SPELLINGS.get(value, value) for value in values]
        seen |= set(values)
        if not any(seen <= pair for pair in _SIGNS):
            raise ValueError(
                f"{path}:{number}: expected an image's name and {len(header) - 1} values, for "
                f"attributes -1 or 1: {line[:60]!r}"
            )
        yield number, cells[name_column], np.isin(values, ("1", "True"))


def read_mapping(path: File) -> dict[int, str]:
    """Read `CelebA-HQ-to-CelebA-mapping.txt` into {index: CelebA's file name}.

    The file comes with and without a header line.
    """
    rows = map(str.split, read_lines(path))
    return {int(row[0]): row[2] for row in rows if len(row) == 3 and row[0].isdecimal()}


def read_partition(path: File) -> dict[str, int]:
    """Read `list_eval_partition.txt` into {CelebA's file name: 0 train, 1 val, 2 test}.

    Raises:
        ValueError: a row is neither; the line is named.
    """
    partition = {}
    for number, line in enumerate(read_lines(path), start=1):
        cells = _cells(line, _delimiter(line))
        if len(cells) == 2 and cells[1] in ("0", "1", "2"):
            partition[cells[0]] = int(cells[1])
        elif cells and number > 1:  # the first line may be a header
            raise ValueError(f"{path}:{number}: expected a name and 0, 1 or 2: {line[:60]!r}")
    return partition


def write_attributes(folder: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Write {image name: bool (40,)} as the official attribute file."""
    lines = [f"{name}  " + " ".join("1" if v else "-1" for v in row) for name, row in rows.items()]
    text = "\n".join([str(len(lines)), " ".join(ATTRIBUTES), *lines])
    files.write_text(folder / ATTRIBUTE_FILE, text + "\n")


def write_partition(
    folder: Path, indices: Sequence[int], originals: Sequence[str], splits: Sequence[int]
) -> None:
    """Write the mapping and partition files that give a folder its own split.

    Args:
        originals: a name for each index, CelebA's where it is known.
        splits: 0 train, 1 val, 2 test.
    """
    mapping = [f"{i} {i} {name}" for i, name in zip(indices, originals, strict=True)]
    text = "\n".join(["idx orig_idx orig_file", *mapping])
    files.write_text(folder / MAPPING_FILE, text + "\n")
    partition = [f"{name} {split}" for name, split in zip(originals, splits, strict=True)]
    files.write_text(folder / PARTITION_FILE, "\n".join(partition) + "\n")
