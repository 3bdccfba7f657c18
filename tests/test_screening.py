"""What cannot be used is left out by name, once; the content of the rest identifies it."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from custom_datasets import screening
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.screening import fingerprint, screen


@pytest.fixture
def folder(drawn_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(drawn_folder, tmp_path / "faces")


def test_a_few_are_left_out_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (folder / "train" / "3.jpg").write_bytes(b"")
    (folder / "test" / "33.jpg").write_text("<html>")
    faces = screen(CelebAHQ(folder, None, 32), tmp_path / "records")
    assert set(range(36)) - set(faces.indices.tolist()) == {3, 33}
    said = capsys.readouterr().out
    assert "train/3.jpg" in said and "test/33.jpg" in said
    assert len(faces.attributes) == len(faces.table.digests) == 34
    assert len(faces.of_split("test")) == len(faces.of_split("test").table.digests) == 5
    assert all(face.image.shape == (3, 32, 32) for face in faces)


def test_a_second_copy_of_a_file_is_left_out_where_chance_divides(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Else a picture that is trained on may be one that measures."""
    mine = folder / "train"
    rows = [f"{i}.jpg,face {i}" for i in range(24)]
    for i in range(5):
        shutil.copy(mine / f"{i}.jpg", mine / f"{i} (1).jpg")
        rows.append(f"{i} (1).jpg,face {i}")
    (mine / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    faces = screen(CelebAHQ(mine, None, 32), tmp_path / "records")
    assert faces.split_kind == "chance" and len(faces) == 24
    assert len({*map(bytes, faces.table.digests)}) == 24
    assert "the same file as 4" in capsys.readouterr().out


def test_what_the_disk_did_not_give_once_is_not_left_out_for_ever(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fail)
        with pytest.raises(OSError, match="jpg"):
            screen(CelebAHQ(folder, None, 32), tmp_path)
    assert len(screen(CelebAHQ(folder, None, 32), tmp_path)) == 36


def test_most_of_them_are_refused(folder: Path, tmp_path: Path) -> None:
    for number in range(20):
        (folder / "train" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train/0\.jpg"):
        screen(CelebAHQ(folder, None, 32), tmp_path)


def test_unchanged_files_are_looked_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    examine = screening.examine
    monkeypatch.setattr(screening, "examine", lambda data: looked.append(1) or examine(data))
    first = screen(CelebAHQ(folder, None, 32), tmp_path)
    assert len(looked) == 36
    again = screen(CelebAHQ(folder, None, 64), tmp_path)
    assert len(looked) == 36 and fingerprint(again) == fingerprint(first)
    assert len(looked) == 36  # the digests are kept as well
    (folder / "val").mkdir()
    os.utime(folder / "train" / "1.jpg")
    screen(CelebAHQ(folder, None, 32), tmp_path)
    assert len(looked) == 72


def test_the_fingerprint_is_of_the_content(
    folder: Path, drawn_folder: Path, tmp_path: Path
) -> None:
    """Neither names nor places nor times count; every byte does, though sizes and times stay."""
    keys = [fingerprint(CelebAHQ(place, None, 32)) for place in (drawn_folder, folder)]
    assert keys[0] == keys[1]
    path = folder / "train" / "5.jpg"
    before, content = path.stat(), bytearray(path.read_bytes())
    screened = screen(CelebAHQ(folder, None, 32), tmp_path)
    assert fingerprint(screened) == keys[0]
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert fingerprint(CelebAHQ(folder, None, 32)) != keys[0]
    assert fingerprint(screen(CelebAHQ(folder, None, 32), tmp_path)) != keys[0]
    two = fingerprint(CelebAHQ(folder, "val", 32)), fingerprint(CelebAHQ(folder, "test", 32))
    assert len({keys[0], *two}) == 3
