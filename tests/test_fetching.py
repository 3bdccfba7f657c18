"""Faces on a new machine: found, linked, imported, or a message that says how to get them."""

import re
import shutil
import threading
from pathlib import Path

import pytest

from custom_datasets import fetching
from custom_datasets.celeba_files import ATTRIBUTE_FILE, IMAGE_FOLDER
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.fetching import ensure_faces, mounted_by_kaggle


@pytest.fixture
def copy(drawn_folder: Path, tmp_path: Path) -> Path:
    """An official folder of 36 faces."""
    folder = tmp_path / "copy" / "CelebAMask-HQ"
    (folder / IMAGE_FOLDER).mkdir(parents=True)
    for path in (drawn_folder / IMAGE_FOLDER).iterdir():
        shutil.copy(path, folder / IMAGE_FOLDER)
    shutil.copy(drawn_folder / ATTRIBUTE_FILE, folder)
    return folder


@pytest.fixture(autouse=True)
def no_kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")


def test_faces_that_are_there_are_left_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "import_copy", lambda *_: pytest.fail("imported"))
    before = sorted(copy.parent.rglob("*"))
    ensure_faces(copy, "eurecom-ds/celeba-hq-256")
    ensure_faces(copy, None)
    assert sorted(copy.parent.rglob("*")) == before


def test_without_a_source_the_ways_to_get_faces_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"faces lacks (.|\n)*1\. (.|\n)*eurecom-ds/celeba"):
        ensure_faces(tmp_path / "faces", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_there", [False, True])
def test_a_path_is_imported(copy: Path, tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "data" / "celeba_hq"
    if is_there:
        folder.mkdir(parents=True)  # and empty
    ensure_faces(folder, str(copy))
    assert len(CelebAHQ(folder, None, 64)) == 36
    assert CelebAHQ(folder, None, 64).split_kind == "identity"


def test_a_path_is_of_the_repository_wherever_the_notebook_runs(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "ROOT", tmp_path)
    (tmp_path / "experiment 4").mkdir()
    monkeypatch.chdir(tmp_path / "experiment 4")
    ensure_faces(tmp_path / "faces", "copy/CelebAMask-HQ")
    assert len(CelebAHQ(tmp_path / "faces", None, 64)) == 36


def test_a_hub_id_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(fetching, "import_copy", lambda *given: asked.append(given) or ["good"])
    ensure_faces(tmp_path / "faces", "eurecom-ds/celeba-hq-256")
    assert asked == [("eurecom-ds/celeba-hq-256", tmp_path / "faces")]


def test_half_a_copy_of_the_users_is_not_touched(copy: Path) -> None:
    (copy / ATTRIBUTE_FILE).unlink()
    with pytest.raises(FileExistsError, match=f"lacks {ATTRIBUTE_FILE}.*holds {IMAGE_FOLDER}: "):
        ensure_faces(copy, "eurecom-ds/celeba-hq-256")
    assert len(list((copy / IMAGE_FOLDER).iterdir())) == 36


MOUNTS = ("", "celebamaskhq", "datasets/ipythonx/celebamaskhq")


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("before", ["nothing", "empty", "link to an earlier mount"])
def test_a_copy_that_kaggle_mounts_is_used_where_it_lies(
    copy: Path, tmp_path: Path, mount: str, before: str
) -> None:
    place = tmp_path / "kaggle" / "input" / mount
    place.mkdir(parents=True)
    copy.rename(place / "CelebAMask-HQ")
    folder = tmp_path / "faces"
    if before == "empty":
        folder.mkdir()
    elif before == "link to an earlier mount":
        folder.symlink_to(tmp_path / "gone")
    ensure_faces(folder, "eurecom-ds/celeba-hq-256")
    assert folder.resolve() == (place / "CelebAMask-HQ").resolve()
    assert len(CelebAHQ(folder, None, 64)) == 36


def test_a_mount_without_attributes_is_passed_over(copy: Path, tmp_path: Path) -> None:
    (copy / ATTRIBUTE_FILE).unlink()
    assert mounted_by_kaggle(tmp_path) is None
    assert mounted_by_kaggle(tmp_path / "nowhere") is None


def test_of_several_processes_one_imports(copy: Path, tmp_path: Path) -> None:
    folder, failed = tmp_path / "faces", []

    def ensure() -> None:
        try:
            ensure_faces(folder, str(copy))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(CelebAHQ(folder, None, 64)) == 36


def test_the_folder_above_or_below_and_an_archive_are_named(copy: Path, tmp_path: Path) -> None:
    for near in (copy.parent, copy / "CelebA-HQ-img"):
        with pytest.raises(FileNotFoundError, match=rf"that is {re.escape(str(copy))}\."):
            ensure_faces(near, None)
    archive = tmp_path / "faces.zip"
    archive.touch()
    with pytest.raises(FileNotFoundError, match="is a file: import it with make data SOURCE="):
        ensure_faces(archive, None)
