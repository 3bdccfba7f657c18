"""CelebA's label files: one reader for all forms, and a writer whose files it reads back."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from custom_datasets.celeba_files import (
    ATTRIBUTE_FILE,
    ATTRIBUTES,
    image_number,
    read_attributes,
    read_mapping,
    read_partition,
    write_attributes,
    write_partition,
)

ROWS = np.random.default_rng(0).random((5, 40)) < 0.5
NAMES = [f"{number:06d}.jpg" for number in range(1, 6)]


def text_form(signs: tuple[str, str] = ("-1", "1")) -> str:
    values = [" ".join(signs[int(value)] for value in row) for row in ROWS]
    rows = [f"{name} {row}" for name, row in zip(NAMES, values, strict=True)]
    return "\n".join(["5", " ".join(ATTRIBUTES), *rows]) + "\n"


def csv_form(columns: list[str], signs: tuple[str, str] = ("-1", "1")) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for name, row in zip(NAMES, ROWS, strict=True):
        values = {a: signs[int(v)] for a, v in zip(ATTRIBUTES, row, strict=True)}
        writer.writerow({"image_id": name, **values})
    return file.getvalue()


FORMS = {
    "text": text_form(),
    "text of 0 and 1": text_form(("0", "1")),
    "csv": csv_form(["image_id", *ATTRIBUTES]),
    "csv of words": csv_form(["image_id", *ATTRIBUTES], ("False", "True")),
    "csv in another order": csv_form([*reversed(ATTRIBUTES), "image_id"]),
    "csv without quotes": csv_form(["image_id", *ATTRIBUTES]).replace('"', ""),
    "csv of a spreadsheet": csv_form(["image_id", *ATTRIBUTES], ("FALSE", "TRUE")).replace(
        ",", ";"
    ),
    "csv of numbers": csv_form(["image_id", *ATTRIBUTES], ("-1.0", "1.0")),
    "csv of pandas": csv_form(["", "image_id", *ATTRIBUTES]),
    "csv of pandas read back": csv_form(["Unnamed: 0", "image_id", *ATTRIBUTES]),
    "csv of other names": csv_form(["image_id", *ATTRIBUTES]).replace("_Hair", " hair").lower(),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_read_alike(tmp_path: Path, form: str) -> None:
    (tmp_path / "list").write_text(FORMS[form])
    rows = read_attributes(tmp_path / "list")
    assert list(rows) == NAMES and np.array_equal(np.stack(list(rows.values())), ROWS)
    assert all(row.dtype == bool for row in rows.values())
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a/list", FORMS[form])
    inside = read_attributes(zipfile.Path(tmp_path / "zip", "a/list"))
    assert np.array_equal(np.stack(list(inside.values())), ROWS)


def test_a_table_in_utf_16_and_a_comma_in_a_name(tmp_path: Path) -> None:
    text = FORMS["csv"].replace("000003.jpg", "000003, copy.jpg")
    for name, encoding in (("8", "utf-8-sig"), ("16", "utf-16")):
        (tmp_path / name).write_text(text, encoding=encoding)
        rows = read_attributes(tmp_path / name)
        assert list(rows)[2] == "000003, copy.jpg"
        assert np.array_equal(np.stack(list(rows.values())), ROWS)


@pytest.mark.parametrize("form", ["csv", "text"])
@pytest.mark.parametrize("fault", ["-", "2", "", "x"])
def test_a_broken_value_is_located_in_both_forms(tmp_path: Path, form: str, fault: str) -> None:
    lines = FORMS[form].splitlines()
    cut = lines[-1].rindex("1")
    lines[-1] = lines[-1][: cut - lines[-1][:cut].endswith("-")] + fault + lines[-1][cut + 1 :]
    (tmp_path / "list").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"list:{len(lines)}: expected .*000005\.jpg"):
        read_attributes(tmp_path / "list")


def test_files_that_are_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(ValueError, match="list is not a text file"):
        read_attributes(tmp_path / "list")
    (tmp_path / "list").write_bytes(b"")
    with pytest.raises(ValueError, match="list: neither line 1 nor line 2 holds"):
        read_attributes(tmp_path / "list")


@pytest.mark.parametrize(
    "text",
    ["000001.jpg 0\n000002.jpg 2", "image_id,partition\n000001.jpg,0\n000002.jpg,2\n"],
    ids=["text", "kaggle"],
)
def test_partition_in_both_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "list").write_text(text)
    assert read_partition(tmp_path / "list") == {"000001.jpg": 0, "000002.jpg": 2}
    (tmp_path / "list").write_text(text + "\n\0\0\0\0\n")
    with pytest.raises(ValueError, match=r"list:\d: expected a name and 0, 1 or 2"):
        read_partition(tmp_path / "list")


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    names = ["3.jpg", "10.png", "7.webp", "0.jpg", "29999.jpg"]
    write_attributes(tmp_path, dict(zip(names, ROWS, strict=True)))
    rows = read_attributes(tmp_path / ATTRIBUTE_FILE, image_number)
    assert list(rows) == [3, 10, 7, 0, 29999]
    assert np.array_equal(np.stack(list(rows.values())), ROWS)
    write_partition(tmp_path, list(rows), NAMES, [0, 1, 2, 0, 0])
    mapping, partition = (
        read_mapping(tmp_path / "CelebA-HQ-to-CelebA-mapping.txt"),
        read_partition(tmp_path / "list_eval_partition.txt"),
    )
    assert mapping == dict(zip(rows, NAMES, strict=True))
    assert [partition[name] for name in mapping.values()] == [0, 1, 2, 0, 0]
    assert b"\r" not in (tmp_path / ATTRIBUTE_FILE).read_bytes()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("7.jpg", 7), ("00007.PNG", 7), ("7.JpEg", 7), ("29999.webp", 29999)),
        *((name, None) for name in ("._7.jpg", "7.gif", "a7.jpg", "7.jpg.tmp", "7", "٧.jpg")),
    ],
)
def test_the_number_of_an_image(name: str, number: int | None) -> None:
    assert image_number(name) == number
