"""Captions of pictures that were made elsewhere: a table of them, and what they state."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from custom_datasets.captions import (
    FACIAL_HAIR,
    FEATURES,
    HAIR_COLORS,
    HAIR_TEXTURES,
    WORN,
    Caption,
)
from custom_datasets.celeba_files import caption_column
from files import write_text

CAPTIONS = "captions.csv"
COLUMNS = ("file_name", "text")  # of the `datasets` library's image folders

_HAIR = "|".join(HAIR_COLORS.values())
_FIXED = {  # attribute -> a pattern of the words that assert it
    "Blurry": "blurry",
    "Attractive": "attractive",
    "Chubby": "chubby",
    "Young": "young",
    "Bald": "bald",
    "Male": "man",
    "Arched_Eyebrows": "arched(?= (?:bushy )?eyebrows)",
    "Bushy_Eyebrows": "bushy(?= eyebrows)",
    "Bangs": "bangs",
    "No_Beard": "a clean-shaven face",
    "Smiling": "smiling",
    "Mouth_Slightly_Open": "(?:shown )?with the mouth slightly open",
}
_FALSE = {
    "Young": "older",
    "Male": "woman",
    "No_Beard": "a beard",
    "Smiling": "not smiling",
    "Eyeglasses": "not wearing glasses",
    "Wearing_Hat": "not wearing a hat",
}
_RULES = [  # those that hold another come first
    *((name, False, pattern) for name, pattern in _FALSE.items()),
    *((name, True, pattern) for name, pattern in _FIXED.items()),
    *((name, True, phrase) for name, phrase in FACIAL_HAIR.items()),
    *((name, True, "|".join(phrases)) for name, phrases in (FEATURES | WORN).items()),
    *((name, True, f"{word}(?= (?:(?:{_HAIR}) )?hair)") for name, word in HAIR_TEXTURES.items()),
    *((name, True, f"{word}(?= hair)") for name, word in HAIR_COLORS.items()),
]
_GLUE = re.compile(
    r"an?|(?:photo|portrait|picture) of|person|with|and|wearing|hair|eyebrows|"
    r"(?:s?he|they) (?:is|are)"
)


def read_caption(text: str) -> Caption:
    """A sentence with the attribute values that it asserts, if all of it is in our grammar.

    A word that `custom_datasets.captions` does not write ("no", "without", "isn't") may turn the
    sense of the others, so such a caption states nothing: it is scored by CLIP alone.
    """
    stated: dict[str, bool] = {}
    words = text.lower()
    denial = re.search(r"\bnot\b", words)
    for name, value, pattern in _RULES:
        rest = re.sub(rf"(?<![\w-])(?:{pattern})(?![\w-])", "|", words)
        if rest != words and name in stated:
            return Caption(text, {})  # asserted and denied
        if rest != words:
            words, stated[name] = rest, value
    left = re.sub(rf"(?<![\w'-])(?:{_GLUE.pattern})(?![\w'-])|[\s|,.]", "", words)
    # After "not smiling" only further denials: "not smiling and wearing a hat" may deny both.
    tail = text.lower()[denial.start() :] if denial else ""
    is_clear = re.fullmatch(r"(not (smiling|wearing (glasses|a hat))(, | and |\.?$))*", tail)
    return Caption(text, stated if not left and is_clear else {})


def write_captions(path: Path, names: Sequence[str], texts: Sequence[str]) -> None:
    """Write which picture was asked for what; no rows where captions are not known."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(zip(names, texts, strict=True) if texts else ())
    write_text(path, text.getvalue())


def read_captions(path: Path) -> dict[str, str]:
    """Captions by file name.

    Args:
        path: a CSV file in UTF-8 with the columns `file_name` and `text` or `caption`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such table; names the file, the line and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of captions at {path.resolve()}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in UTF-8 ({error.reason}): save it as CSV UTF-8"
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    column = caption_column(rows.fieldnames or ())
    if "file_name" not in (rows.fieldnames or ()) or not column:
        raise ValueError(f"{path}, line 1: {rows.fieldnames}, expected {','.join(COLUMNS)}")
    captions: dict[str, str] = {}
    try:
        for each in rows:
            where = f"{path}, line {rows.line_num}"
            name, caption = each["file_name"], each[column]
            if None in each:
                raise ValueError(
                    f'{where}: too many columns; put a caption with a comma in "quotes"'
                )
            if not (name or "").strip() or not (caption or "").strip():
                raise ValueError(f"{where}: a picture or its caption is missing; complete the line")
            if name in captions:
                raise ValueError(f"{where}: {name!r} has a caption already; remove one")
            captions[name] = caption.strip()
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}; write it anew as CSV") from error
    return captions
