"""The mirror: whole files only, each once, and a fresh machine goes on from them."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub.errors import HTTPError

import config as config_module
from config import Config
from training import checkpoints, mirror, run_folder
from training.experiment import Experiment
from training.loop import train
from training.mirror import FolderStore, Mirror


@pytest.fixture
def machine(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Experiment]]:
    """Opens the run on a machine of this name, whose disk is its own; the mirror is shared."""
    made: list[Experiment] = []

    def boot(name: str, **changes: object) -> Experiment:
        for earlier in made:
            earlier.close()
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(config_module, "ROOT", tmp_path / name)
        settings = {"mixed_precision": "no", "tracker": None, "mirror": str(tmp_path / "drive")}
        training = dataclasses.replace(tiny_config.training, **(settings | changes))
        made.append(Experiment(dataclasses.replace(tiny_config, training=training)))
        return made[-1].open_all()

    yield boot
    for opened in made:
        opened.close()


def test_a_fresh_machine_goes_on_from_the_mirror(
    machine: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = machine("first")
    steps = train(first)
    for _ in range(5):  # one epoch is saved, and two steps are lost with the machine
        next(steps)
    steps.close()
    names = {path.name for path in (tmp_path / "drive" / "test").iterdir()}
    assert names == {"celeba_ldm_unet_checkpoint_epoch_1.pt", "config.json", "losses.jsonl"}
    second = machine("second")
    assert second.state.step == 3 and "restored from the mirror" in capsys.readouterr().out
    assert [step.number for step in train(second)] == [4, 5, 6]
    lines = run_folder.read_losses(second.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    whole = machine("whole", mirror=None)
    list(train(whole))
    for name, value in whole.state.unet.state_dict().items():
        assert torch.equal(second.state.unet.state_dict()[name], value)


def test_a_mirror_that_is_away_costs_a_message_and_catches_up(
    machine: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    real, calls = FolderStore.put, []

    def put(self: FolderStore, path: Path) -> None:
        calls.append(path.name)
        if len(calls) == 1:
            raise OSError(107, "Transport endpoint is not connected")
        real(self, path)

    monkeypatch.setattr(FolderStore, "put", put)
    opened = machine("first")
    assert len(list(train(opened))) == 6
    said = capsys.readouterr().out
    assert "epoch_1.pt was not copied to the mirror" in said and "not connected" in said
    drive = FolderStore(tmp_path / "drive" / "test")
    kept = {path.name for path in checkpoints.checkpoints(opened.folder)}
    assert {name for name in drive.names() if name.endswith(".pt")} == kept


def test_a_checkpoint_is_copied_once_and_what_is_pruned_is_deleted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    real = FolderStore.put
    monkeypatch.setattr(
        FolderStore, "put", lambda self, path: copies.append(path.name) or real(self, path)
    )
    there = Mirror(str(tmp_path / "drive"), "a run")
    path = checkpoints.newest_checkpoint(run)
    for _ in range(3):
        there.copy(run, path)
    there.wait()
    assert copies.count(path.name) == 1
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    path.replace(later)
    there.copy(run, later)
    there.wait()
    assert there.store.names() == [path.name, later.name]  # gone here, but not pruned
    there.copy(run, later, [path])
    there.wait()
    assert there.store.names() == [later.name]


def test_a_copy_that_differs_is_no_copy(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(mirror.shutil, "copyfile", lambda _, to: Path(to).write_bytes(b"half"))
    there = Mirror(str(tmp_path / "drive"), "a run")
    there.copy(run, checkpoints.newest_checkpoint(run))
    there.wait()
    assert "differs" in capsys.readouterr().out
    assert there.store.names() == []


def test_a_damaged_copy_is_passed_over(run: Path, tmp_path: Path) -> None:
    there = Mirror(str(tmp_path / "drive"), "a run")
    path = checkpoints.newest_checkpoint(run)
    there.copy(run, path)
    there.wait()
    torn = tmp_path / "drive" / "a run" / "celeba_ldm_unet_checkpoint_epoch_9.pt"
    torn.write_bytes(path.read_bytes()[:5000])
    fresh = tmp_path / "fresh"
    found = mirror.restore(str(tmp_path / "drive"), "a run", fresh, checkpoints.load_checkpoint)
    assert found == fresh / path.name and [p.name for p in fresh.glob("*.pt")] == [path.name]
    again = mirror.restore(str(tmp_path / "drive"), "a run", fresh, checkpoints.load_checkpoint)
    assert again is None  # the run folder has its own


def test_a_mirror_without_the_run_is_a_fresh_start(tmp_path: Path) -> None:
    found = mirror.restore(
        str(tmp_path / "drive"), "x", tmp_path / "run", checkpoints.load_checkpoint
    )
    assert found is None


def test_what_a_fresh_machine_did_not_fetch_stays(run: Path, tmp_path: Path) -> None:
    """It fetches the newest checkpoint alone; the mirror keeps every n-th epoch and the best."""
    drive, path = str(tmp_path / "drive"), checkpoints.newest_checkpoint(run)
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    shutil.copy(path, later)
    first = Mirror(drive, "a run")
    first.copy(run, later)
    first.wait()
    fresh = tmp_path / "fresh"
    assert mirror.restore(drive, "a run", fresh, checkpoints.load_checkpoint) == fresh / later.name
    second = Mirror(drive, "a run")
    second.copy(fresh, fresh / later.name)
    second.wait()
    assert second.store.names() == [path.name, later.name]


def test_what_could_not_be_deleted_is_deleted_the_next_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    there.copy(run, path)
    there.wait()
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    path.replace(later)
    with monkeypatch.context() as away:
        away.setattr(FolderStore, "names", lambda _: (_ for _ in ()).throw(OSError("away")))
        there.copy(run, later, [path])
        there.wait()
    assert there.store.names() == [path.name]
    there.copy(run, later)
    there.wait()
    assert there.store.names() == [later.name]


@pytest.mark.parametrize("other", [False, True])
def test_a_mirror_without_a_usable_checkpoint_does_not_begin_the_run_again(
    other: bool, run: Path, tmp_path: Path
) -> None:
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    there.copy(run, path)
    there.wait()
    kind, fresh = (checkpoints.OtherVersion if other else ValueError), tmp_path / "fresh"

    def open_it(_: Path) -> None:
        raise kind("written by another version" if other else "damaged")

    reason = "another version" if other else "none of the 1 checkpoints in the mirror"
    with pytest.raises(kind, match=reason):
        mirror.restore(str(tmp_path / "drive"), "a run", fresh, open_it)
    assert not list(fresh.glob("*.pt")) and there.store.names() == [path.name]


class Hub:
    """The hub's client over a folder, for one private repository."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def repo_exists(self, repository: str) -> bool:
        return self.folder.exists()

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok
        self.folder.mkdir(exist_ok=True)

    def list_repo_files(self, repository: str) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in files]

    def get_paths_info(self, repository: str, path: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(size=(self.folder / path).stat().st_size)]

    def upload_file(self, *, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
        (self.folder / path_in_repo).parent.mkdir(exist_ok=True)
        shutil.copy(path_or_fileobj, self.folder / path_in_repo)

    def hf_hub_download(self, repository: str, name: str) -> str:
        return str(self.folder / name)

    def delete_file(self, path: str, repository: str) -> None:
        (self.folder / path).unlink()


def test_two_runs_share_a_repository_of_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a folder there, and deletes only what it has pruned itself."""
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(tmp_path / "hub"))
    path = checkpoints.newest_checkpoint(run)
    first, second = (Mirror("hf:owner/name", name) for name in ("first", "second"))
    first.copy(run, path)
    first.wait()
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    path.rename(later)
    second.copy(run, later)
    second.wait()
    content = later.read_bytes()
    assert first.store.names() == [path.name] and second.store.names() == [later.name]
    for name, expected in (("first", path.name), ("second", later.name)):
        fresh = tmp_path / f"fresh {name}"
        found = mirror.restore("hf:owner/name", name, fresh, checkpoints.load_checkpoint)
        assert found == fresh / expected and found.read_bytes() == content


def test_checkpoints_in_no_runs_folder_of_the_hub_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "celeba_ldm_unet_checkpoint_epoch_2.pt").touch()
    with pytest.raises(ValueError, match=r"epoch_2\.pt in no run's folder: move them into x/"):
        mirror.restore("hf:owner/name", "x", tmp_path / "run", checkpoints.load_checkpoint)


class Unreachable:
    """The hub's client without a network."""

    def repo_exists(self, repository: str) -> bool:
        raise HTTPError(f"no connection for {repository}")


def test_a_mirror_that_cannot_be_read_does_not_begin_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the place of a drive")
    places = {"hf:owner/name": "no connection", str(tmp_path / "file"): "file"}
    monkeypatch.setattr("huggingface_hub.HfApi", Unreachable)
    for place, reason in places.items():
        with pytest.raises(ConnectionError, match=rf"training\.mirror .*{reason}.*mirror=none"):
            mirror.restore(place, "x", tmp_path / "run", checkpoints.load_checkpoint)


def test_a_relative_mirror_is_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mirror.open_store("drive", "x").folder == config_module.ROOT / "drive" / "x"
