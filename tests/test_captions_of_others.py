"""Pictures made elsewhere: which files of a folder count, and torn tables of captions."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.folder import captions_of, open_folder


def write_captions(path: Path, names: list[str], texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *zip(names, texts, strict=True)])


def test_a_table_comes_back_whatever_the_captions_hold(tmp_path: Path) -> None:
    texts = {"1.png": 'a "man", smiling', "2.png": "ein Mann\nmit Bart", "3.png": "женщина"}
    write_captions(tmp_path / "captions.csv", [*texts], [*texts.values()])
    assert captions_of([*texts], tmp_path / "captions.csv") == [*texts.values()]
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,a man\n")  # as data has it
    assert captions_of(["a.png"], tmp_path / "metadata.csv") == ["a man"]


@pytest.mark.parametrize(
    "lines",
    [
        ["file_name,text", "a.png,a man", "b.png,a man, smiling"],
        ["file_name,text", "a.png,a man", "a.png,a woman"],
        ["file_name,text", "a.png,"],
        ["file_name,words", "a.png,a man"],
        ["name;caption", "a.png;a man"],
        ["file_name,text", "a.png,caf\xe9"],
    ],
)
def test_a_torn_table_is_refused_by_its_name(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("\n".join(lines), encoding="cp1252")
    with pytest.raises(ValueError, match=r"captions\.csv"):
        captions_of(["a.png"], path)


def write_picture(path: Path, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_a_folder_is_read_with_its_subfolders_and_without_a_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("2.png", "10.jpg", "deep/3.bmp"):
        write_picture(tmp_path / name)
    write_picture(tmp_path / "grid.png", (80, 160))
    images = open_folder(tmp_path, 32)
    names = sorted(images.names)
    assert names == ["10.jpg", "2.png", "deep/3.bmp"]
    assert "grid.png" in capsys.readouterr().out
    assert all(image.shape == (3, 32, 32) for image in images)
    write_captions(tmp_path / "t.csv", names, [f"a man {name}" for name in names])
    captions = captions_of(images.names, tmp_path / "t.csv")
    assert captions == [f"a man {name}" for name in images.names]
    write_captions(tmp_path / "t.csv", names[1:], names[1:])
    with pytest.raises(ValueError, match=r"10\.jpg"):
        captions_of(images.names, tmp_path / "t.csv")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"2\.png"):
        open_folder(tmp_path, 32)
    with pytest.raises(FileNotFoundError):
        open_folder(tmp_path / "none", 32)
