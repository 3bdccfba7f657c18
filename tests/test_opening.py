"""Faces that a preset names, opened where they are, and left out where a page can do without."""

import dataclasses
from pathlib import Path

import pytest

import config as config_module
from config import Config
from custom_datasets import fetching
from custom_datasets.celeba_files import ATTRIBUTE_FILE
from custom_datasets.opening import find_faces, has_split, open_faces


@pytest.fixture
def real(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A preset of real faces, of which this machine has none."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    data = dataclasses.replace(tiny_config.data, folder=str(tmp_path / "faces"), drawn_counts=())
    return dataclasses.replace(tiny_config, data=data)


def test_faces_that_are_not_there_are_left_out_aloud(
    real: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_faces(real, "test") is None
    assert "left out: no CelebA-HQ at" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        open_faces(real, "test")


def test_nothing_is_imported_into_a_folder_that_the_user_names(
    real: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be misspelt, and the faces may lie beside it."""
    data = dataclasses.replace(real.data, source="eurecom-ds/celeba-hq-256")
    monkeypatch.setattr(fetching, "import_copy", lambda *_: pytest.fail("imported"))
    monkeypatch.setenv("CELEBA_HQ_DIR", str(tmp_path / "celeba_hp"))
    with pytest.raises(FileNotFoundError, match=r"no faces: .*celeba_hp"):
        open_faces(dataclasses.replace(real, data=data), "train")


def test_damaged_faces_are_no_reason_to_leave_them_out(real: Config) -> None:
    folder = real.data_folder
    (folder / "CelebA-HQ-img").mkdir(parents=True)
    (folder / ATTRIBUTE_FILE).write_text("no table")
    with pytest.raises(ValueError):
        find_faces(real, "test")


def test_faces_that_are_there_are_found(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    faces = find_faces(tiny_config, "test")
    assert len(faces) == 6 and faces.split == "test"
    assert len(open_faces(tiny_config, None)) == 36
    assert open_faces(tiny_config, "val", 32)[0].image.shape == (3, 32, 32)
    assert has_split(faces, "val")
    larger = dataclasses.replace(tiny_config.data, picture_size=128)
    models = dataclasses.replace(tiny_config.models, decoder="of twice the size")
    twice = dataclasses.replace(tiny_config, data=larger, models=models)
    assert find_faces(twice, "test")[0].image.shape == (3, 128, 128)  # to be edited at this size
