"""A folder of pictures made elsewhere, and the captions that come with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.folder import FolderImages, open_folder, read_captions

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures 1 to 12 of several formats and sizes, whose red value is ten times their number."""
    place = tmp_path / "peer"
    place.mkdir()
    for number in range(1, COUNT + 1):
        size, ending = ((96, 64), "jpg") if number == 3 else ((64, 64), "png")
        picture = Image.new("RGB", size, (10 * number, 5, 5))
        picture.save(place / f"{number}.{ending}", quality=100, subsampling=0)
    Image.new("L", (64, 64), 200).save(place / "13.webp", lossless=True)
    (place / "notes.txt").write_text("no picture")
    return place


def numbers(images: FolderImages) -> list[int]:
    return [int(path.stem) for path in images.paths]


def test_all_pictures_are_opened_at_one_size_in_random_order(folder: Path) -> None:
    images = open_folder(folder, 32)
    assert sorted(numbers(images)) == list(range(1, 14)) != numbers(images)
    assert numbers(open_folder(folder, 32)) == numbers(images)
    for place, number in enumerate(numbers(images)):
        assert images[place].shape == (3, 32, 32)
        expected = 200 if number == 13 else 10 * number
        assert abs(int(images[place][0, 16, 16]) - expected) <= 2
    assert images.formats == "PNG, 64x64: 11; JPEG, 96x64: 1; WEBP, 64x64: 1"


def test_another_folder_or_other_files_have_another_key(folder: Path) -> None:
    key = open_folder(folder, 32).key
    assert open_folder(folder, 32).key == key != open_folder(folder, 64).key
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "4.png")
    assert open_folder(folder, 32).key != key


def test_damaged_pictures_are_left_out_by_name(folder: Path) -> None:
    whole = (folder / "5.png").read_bytes()
    (folder / "5.png").write_bytes(whole[: len(whole) // 2])
    (folder / "6.png").write_text("<html>not found</html>")
    images = open_folder(folder, 32)
    assert [path.name for path in images.damaged] == ["5.png", "6.png"]
    assert len(images) == 11 and {5, 6}.isdisjoint(numbers(images))


def test_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_folder(tmp_path / "absent", 32)
    with pytest.raises(FileNotFoundError, match="no image that can be read"):
        open_folder(tmp_path, 32)


def write_captions(folder: Path, kind: str) -> Path:
    path = folder.parent / f"captions.{kind}"
    names = [f"{n}.jpg" if n == 3 else f"{n}.webp" if n == 13 else f"{n}.png" for n in range(1, 14)]
    texts = [f'A man, number {n}, called "{n}"' for n in range(1, 14)]
    pairs = list(zip(names, texts, strict=True))
    if kind == "csv":
        rows = ["file_name,text", *(f'{n},"{t.replace(chr(34), chr(34) * 2)}"' for n, t in pairs)]
        path.write_text("\n".join(rows), encoding="utf-8-sig")
    elif kind == "jsonl":
        rows = [json.dumps({"image": f"some/where/{n}", "prompt": t}) for n, t in reversed(pairs)]
        path.write_text("\n".join(rows))
    elif kind == "json":
        path.write_text(json.dumps(dict(pairs)))
    else:
        path.write_text("\n".join(texts) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "txt"])
def test_each_picture_gets_its_own_caption(kind: str, folder: Path) -> None:
    images = open_folder(folder, 32)
    captions = read_captions(write_captions(folder, kind), images)
    for number, caption in zip(numbers(images), captions, strict=True):
        assert caption.text == f'A man, number {number}, called "{number}"'
        assert caption.stated == {"Male": True}


def test_lines_stay_with_their_pictures_where_one_is_damaged(folder: Path) -> None:
    path = write_captions(folder, "txt")
    (folder / "2.png").write_bytes(b"")
    images = open_folder(folder, 32)
    captions = read_captions(path, images)
    said = [int(caption.text.split()[3].rstrip(",")) for caption in captions]
    assert said == numbers(images) and 2 not in said


def test_captions_that_do_not_fit_are_refused(folder: Path) -> None:
    images = open_folder(folder, 32)
    with pytest.raises(FileNotFoundError, match="captions"):
        read_captions(folder / "absent.csv", images)
    (path := folder.parent / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="2 lines for 13 images"):
        read_captions(path, images)
    (path := folder.parent / "some.csv").write_text("file_name,text\n1.png,a man\n")
    with pytest.raises(ValueError, match="no caption for 12 images"):
        read_captions(path, images)
    (path := folder.parent / "other.csv").write_text("a,b\n1.png,a man\n")
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\].*'file_name'.*'text'"):
        read_captions(path, images)


def test_the_order_does_not_follow_the_names(folder: Path) -> None:
    """Sorted files must not become sorted features: the first n would be another population."""
    order = np.array(numbers(open_folder(folder, 32)))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.7
