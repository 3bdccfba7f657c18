"""Which faces a preset means, and what is left out where there are none."""

import shutil
from pathlib import Path

import pytest

import config as config_module
from config import Config, get_config
from custom_datasets import opening
from custom_datasets.drawn_faces import write_drawn_faces
from custom_datasets.opening import find_faces, locate, open_faces
from settings import override
from training.old_configs import read_config


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    monkeypatch.setattr(opening, "KAGGLE_INPUT", tmp_path / "kaggle")
    return tmp_path


def located(preset: str, *changes: str) -> str:
    return locate(get_config(preset, changes).data)


def test_the_door_to_the_faces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = root / "mine"
    mine.mkdir()
    assert located("celeba_hq") == located("laptop") == config_module.CELEBA_HQ
    mounted = root / "kaggle" / "datasets" / "someone" / "CelebAMask-HQ"
    mounted.mkdir(parents=True)
    assert located("celeba_hq") == str(mounted)
    home = root / "data" / "celeba_hq"
    home.mkdir(parents=True)
    assert located("celeba_hq") == str(mounted)  # an empty folder holds no faces
    (home / "CelebA-HQ-img").mkdir()
    assert located("celeba_hq") == str(home)
    monkeypatch.setenv("CELEBA_HQ_DIR", "elsewhere")
    assert located("celeba_hq") == str(root / "elsewhere")
    assert located("celeba_hq", "data.source=mine") == str(mine)  # what is said last counts
    assert located("celeba_hq", "data.source=owner/name") == "owner/name"
    misspelt = located("celeba_hq", "data.source=data/celeba")
    assert misspelt == str(root / "data" / "celeba")
    assert Path(located("demo")).is_relative_to(root / "data" / "drawn")
    assert located("demo", "data.source=mine") == str(mine)


def test_a_users_pictures_are_never_drawn_over(root: Path) -> None:
    """`--preset smoke --set data.source=<a folder>` opens it, and writes nothing into it."""
    folder = write_drawn_faces(root / "mine", (8, 2, 2), 32, workers=1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = get_config("smoke", ["data.source=mine"])
    assert not config.data.is_drawn and len(open_faces(config, None)) == 12
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_faces_that_are_not_there_are_left_out_aloud(
    tiny_config: Config, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = override(tiny_config, {"data.source": str(root / "nowhere")})
    assert find_faces(nowhere, "test") is None
    assert "nowhere" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_faces(nowhere, "test")


def test_faces_that_are_there_are_found(tiny_config: Config) -> None:
    faces = find_faces(tiny_config, "test")
    assert len(faces) == 6 and faces.split == "test"
    assert len(open_faces(tiny_config, None)) == 36
    assert open_faces(tiny_config, "val", 32)[0].image.shape == (3, 32, 32)
    twice = override(tiny_config, {"data.picture_size": 128, "models.decoder": "twice as large"})
    assert find_faces(twice, "test")[0].image.shape == (3, 128, 128)  # to be edited at this size


def test_a_split_without_faces_is_left_out_aloud(root: Path, tiny_config: Config) -> None:
    folder = write_drawn_faces(root / "mine", (8, 2, 2), 64, workers=1)
    shutil.rmtree(folder / "test")
    mine = override(tiny_config, {"data.source": str(folder)})
    assert find_faces(mine, "test") is None and len(find_faces(mine, "val")) == 2
    for picture in (folder / "validation").glob("*.jpg"):
        picture.write_bytes(b"")
    assert find_faces(mine, "val") is None


@pytest.mark.parametrize(
    ("stored", "source"),
    [
        ({"folder": "data/drawn_faces", "drawn_counts": [4, 1, 1], "source": None}, None),
        ({"folder": "data/celeba_hq", "source": "eurecom-ds/celeba-hq-256"}, None),
        ({"folder": "/mine/faces", "source": None}, "/mine/faces"),
        ({"source": "owner/name"}, "owner/name"),
    ],
)
def test_stored_settings_name_the_faces_that_they_named(stored: dict, source: str | None) -> None:
    """Before there was one door, `data.folder` held the faces."""
    found = read_config({"name": "before", "data": {"image_size": 256, **stored}})
    assert found.data.source == source
    assert found.data.is_drawn == bool(stored.get("drawn_counts"))
