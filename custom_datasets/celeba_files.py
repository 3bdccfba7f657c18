"""The files that faces come in: CelebAMask-HQ's annotation file, tables of pictures, pictures.

The 40 attributes go by their names, never by their place.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import config

IMAGE_FOLDER = "CelebA-HQ-img"
ATTRIBUTE_FILE = "CelebAMask-HQ-attribute-anno.txt"
METADATA_FILES = ("metadata.csv", "metadata.jsonl")  # as `datasets`' image folders have them
OFFICIAL_COUNT = 30_000
CAPTION_COLUMNS = ("caption", "text")

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


def homes() -> list[Path]:
    """Where CelebA-HQ may lie on this machine: in the folder that CELEBA_HQ_DIR names, then in
    `data/celeba_hq`, there or not.
    """
    named = (os.environ.get("CELEBA_HQ_DIR"), "data/celeba_hq")
    return [config.ROOT / Path(name).expanduser() for name in named if name]


def attribute_columns(where: object, columns: Iterable[str]) -> list[str]:
    """The columns of the 40 attributes, in their order, such as "Wavy Hair" or "wavy_hair"; empty
    where there is none.

    Args:
        where: the table, for the message.

    Raises:
        ValueError: some of the 40 are there, and others are not.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s-]+", "_", name.replace("'", "")).lower()

    found = {plain(name): name for name in columns}
    missing = [name for name in ATTRIBUTES if plain(name) not in found]
    if len(missing) == len(ATTRIBUTES):
        return []
    if missing:
        raise ValueError(
            f"{where} has {len(ATTRIBUTES) - len(missing)} of CelebA's 40 attributes, and lacks "
            f"{', '.join(missing)}. Add these columns, or a column `caption` in their place."
        )
    return [found[plain(name)] for name in ATTRIBUTES]


def caption_column(columns: Iterable[str]) -> str | None:
    """The column that holds captions; None where there is none."""
    return next((name for name in CAPTION_COLUMNS if name in columns), None)


def as_attributes(where: object, values: np.ndarray) -> np.ndarray:
    """Values -1 or 0 for no and 1 for yes, (N, 40), as bool.

    Raises:
        ValueError: another shape, or another value.
    """
    if values.ndim != 2 or values.shape[1] != len(ATTRIBUTES):
        raise ValueError(f"{where}: expected 40 attributes of each face, got {values.shape}")
    wrong = ~np.isin(values, (-1, 0, 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{where}: {ATTRIBUTES[column]} of row {row} is {values[row, column]!r}, not -1, 0 or 1"
        )
    return values == 1


def read_attributes(path: Path) -> tuple[list[str], np.ndarray]:
    """The names of the images in CelebAMask-HQ's annotation file, and their attributes, bool
    (N, 40).

    Raises:
        ValueError: it is another file, or is cut short.
    """
    with path.open(encoding="utf-8-sig") as file:
        announced = file.readline().strip()
    try:
        table = pd.read_csv(path, sep=r"\s+", skiprows=1)  # the first column has no header
        columns = attribute_columns(path, table.columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not columns or announced != str(len(table)):
        raise ValueError(f"{path} announces {announced!r} faces, {len(table)} follow")
    return table.index.tolist(), as_attributes(path, table[columns].to_numpy())


def write_metadata(folder: Path, names: Sequence[str], attributes: np.ndarray) -> None:
    """Write the table of a folder of pictures.

    Args:
        names: paths from the folder, such as "train/0.jpg".
        attributes: bool (N, 40).
    """
    table = pd.DataFrame(attributes.astype(int), columns=list(ATTRIBUTES))
    table.insert(0, "file_name", list(names))
    table.to_csv(folder / "metadata.csv", index=False, lineterminator="\n")


def list_files(folder: Path) -> list[str]:
    """The files below a folder by their paths from it, sorted; hidden ones, such as the "._7.jpg"
    that macOS adds, are left out.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        below = "" if Path(place) == folder else f"{Path(place).relative_to(folder).as_posix()}/"
        names += [below + name for name in files if not name.startswith(".")]
    return sorted(names)


def printable(name: str) -> str:
    """A file's name, with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_metadata(folder: Path, path: Path) -> pd.DataFrame:
    """A table whose `file_name` is the path from the folder."""
    try:
        # As they stand: "NA" may be a word of a caption, and 007 a name.
        if path.suffix == ".csv":
            text = dict.fromkeys(("file_name", *CAPTION_COLUMNS), str)
            plain = {"dtype": text, "skipinitialspace": True, "keep_default_na": False}
            table = pd.read_csv(path, encoding="utf-8-sig", na_values=[""], **plain)
        else:
            plain = {"dtype": False, "convert_dates": False}
            table = pd.read_json(path, lines=True, encoding="utf-8-sig", **plain)
    except ValueError as error:  # not text in UTF-8, or another number of cells in a row
        raise ValueError(f"{path}: {error}") from error
    known = {name: name for name in ("file_name", *CAPTION_COLUMNS)}
    table = table.rename(columns=lambda name: known.get(str(name).strip().lower(), name))
    if not isinstance(table.index, pd.RangeIndex):  # pandas took the first column for names
        raise ValueError(f"{path}: more cells than columns; put a caption with a comma in quotes")
    if "file_name" not in table.columns:
        raise ValueError(f"{path} has no column file_name, but {', '.join(map(str, table))}")
    table = table[table["file_name"].notna()]  # a spreadsheet's empty last rows
    place = path.parent.relative_to(folder)
    return table.assign(file_name=[(place / str(n)).as_posix() for n in table["file_name"]])


def image_number(name: str) -> int:
    """The number of an image file: 7 for "7.jpg" or "00007.PNG"; -1 for other names."""
    found = re.fullmatch(r"0*([0-9]{1,9})\.\w+", name.rpartition("/")[2])
    return int(found[1]) if found else -1
