"""Data sets on the hub: a path is never asked for, columns are looked at before gigabytes."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from custom_datasets import hub
from custom_datasets.hub import dataset_id, fetch, locate

ID = "eurecom-ds/celeba-hq-256"


def test_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source in (ID, f"{ID}/", f"https://huggingface.co/datasets/{ID}"):
        assert dataset_id(source) == ID


@pytest.mark.parametrize(
    "source",
    [
        "celeba",
        "./data/celeba",
        "/data/celeba",
        "~/celeba",
        "a/b/c",
        "..",
        "data\\celeba",
        "C:\\faces",
        "here/celeba",  # the folder "here" is there
        "data/faces.zip",
        "data/faces.parquet",
        "",
    ],
)
def test_a_path_that_is_not_there_is_refused_and_nobody_is_asked(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda name: pytest.fail(f"asked for {name}"))
    if source in ("..", ""):  # these are there
        assert locate(source).is_dir()
        return
    with pytest.raises(FileNotFoundError, match=r"is not there; .* holds .*owner/name"):
        locate(source)


class Hub:
    """A hub with one data set."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.fetched = folder, []
        api = SimpleNamespace(dataset_info=self.info)
        monkeypatch.setattr(hub, "HfApi", lambda: api)
        monkeypatch.setattr(hub, "HfFileSystem", lambda: SimpleNamespace(open=self.open))
        monkeypatch.setattr(hub, "snapshot_download", self.download)
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)

    def info(self, name: str, timeout: float) -> SimpleNamespace:
        paths = filter(Path.is_file, self.folder.rglob("*"))
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def open(self, path: str, mode: str) -> object:
        return (self.folder / path.removeprefix(f"datasets/{ID}/")).open(mode)

    def download(self, name: str, repo_type: str, allow_patterns: list[str] | None) -> str:
        self.fetched.append((name, allow_patterns))
        return str(self.folder)


def test_columns_are_looked_at_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hub(tmp_path, monkeypatch)
    shard = tmp_path / "train-0.parquet"
    pq.write_table(pa.table({"image": [b"1"], "text": ["a face"]}), shard)
    with pytest.raises(ValueError, match=f"{ID} carries no attributes .*columns: image, text"):
        fetch(ID)
    assert not asked.fetched
    pq.write_table(pa.table({"image": [b"1"], "attributes": [[1] * 40]}), shard)
    assert fetch(ID) == tmp_path
    assert asked.fetched == [(ID, ["*.parquet"])]


def test_a_data_set_that_is_an_archive_is_fetched_without_what_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Hub(tmp_path, monkeypatch)
    (tmp_path / "CelebAMask-HQ.zip").touch()
    fetch(ID)
    patterns = asked.fetched[0][1]
    assert "*.zip" in patterns and "*.parquet" not in patterns


def test_without_a_network_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **_: object) -> None:
        raise ConnectionResetError("no route")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    monkeypatch.setattr(hub, "_wanted_files", lambda name: None)
    with pytest.raises(ConnectionError, match=f"cannot fetch {ID} from the hub: no route.* folder"):
        fetch(ID)
