"""The mirror: whole files only, and a fresh machine goes on from them."""

import fnmatch
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from training import checkpoints, mirror, run_folder
from training.experiment import Experiment
from training.loop import train
from training.mirror import Mirror

CHECKPOINT = "celeba_ldm_unet_checkpoint_epoch_1.pt"


@pytest.fixture
def machine(start: Callable[..., Experiment], tmp_path: Path) -> Callable[..., Experiment]:
    """Opens the run on a machine of this name, whose disk is its own; the mirror is shared."""

    def boot(name: str, **changes: object) -> Experiment:
        return start(home=name, **({"mirror": str(tmp_path / "drive")} | changes)).open_all()

    return boot


def test_a_fresh_machine_goes_on_from_the_mirror(
    machine: Callable[..., Experiment], tmp_path: Path
) -> None:
    first = machine("first")
    steps = train(first)
    for _ in range(5):  # one epoch is saved, and two steps are lost with the machine
        next(steps)
    steps.close()
    drive, expected = tmp_path / "drive" / "test", {CHECKPOINT, "config.json", "losses.jsonl"}
    give_up_at = time.monotonic() + 60
    while {path.name for path in drive.iterdir()} != expected:  # a thread copies
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    second = machine("second")
    assert second.state.step == 3
    assert [step.number for step in train(second)] == [4, 5, 6]
    lines = run_folder.read_losses(second.folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    whole = machine("whole", mirror=None)
    list(train(whole))
    for name, value in whole.state.unet.state_dict().items():
        assert torch.equal(second.state.unet.state_dict()[name], value)


def test_what_was_refused_last_follows_when_the_run_is_started_again(
    machine: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A drive that is away costs messages and no step; a run that has ended saves no more."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    with monkeypatch.context() as away:
        away.setattr(mirror.shutil, "copyfile", refuse)
        opened = machine("first")
        assert len(list(train(opened))) == 6
    assert "not connected" in capsys.readouterr().out
    drive = tmp_path / "drive" / "test"
    assert not list(drive.glob("*.pt"))
    again = machine("first")
    assert list(train(again)) == []
    kept = {path.name for path in checkpoints.checkpoints(again.folder)}
    assert kept and {path.name for path in drive.glob("*.pt")} == kept


def test_a_run_that_is_stopped_waits_for_its_copy(
    machine: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook goes on after an interruption, and its machine may be given back at once."""
    really = shutil.copyfile

    def slowly(source: Path, target: Path) -> None:
        time.sleep(0.3)
        really(source, target)

    monkeypatch.setattr(mirror.shutil, "copyfile", slowly)
    opened = machine("first")
    with pytest.raises(KeyboardInterrupt):
        for step in train(opened):
            if step.number == 1:
                signal.raise_signal(signal.SIGTERM)
    kept = {path.name for path in checkpoints.checkpoints(opened.folder)}
    assert kept and {path.name for path in (tmp_path / "drive" / "test").glob("*.pt")} == kept


def test_a_drive_that_is_not_mounted_is_not_an_empty_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The run would begin again, and its copies would lie on the disk that is lost."""
    there = Mirror(str(tmp_path / "drive" / "MyDrive" / "faces"), "a run")
    with pytest.raises(FileNotFoundError, match="mounted"):
        there.restore(tmp_path / "empty")
    send(there, run)
    assert "mounted" in capsys.readouterr().out
    assert not (tmp_path / "drive").exists()
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    send(there, run)
    assert names(there) == [checkpoints.newest_checkpoint(run).name]


class Hub:
    """The hub's client over a folder, for one private repository; counts squashed histories."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.squashed = folder, 0

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok
        self.folder.mkdir(exist_ok=True)

    def list_repo_files(self, repository: str) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in files]

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        path_in_repo: str,
        allow_patterns: list[str],
        delete_patterns: list[str],
    ) -> None:
        for path in folder_path.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (self.folder / path_in_repo).mkdir(exist_ok=True)
                shutil.copy(path, self.folder / path_in_repo / path.name)
        for name in delete_patterns:
            (self.folder / path_in_repo / name).unlink(missing_ok=True)

    def snapshot_download(self, repository: str, *, allow_patterns: list[str]) -> str:
        assert all((self.folder / name).is_file() for name in allow_patterns)
        return str(self.folder)

    def super_squash_history(self, repository: str) -> None:
        self.squashed += 1


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(mirror, "HfApi", lambda: hub)
    return hub


@pytest.fixture(params=["drive", "hub"])
def there(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Callable[[str], Mirror]:
    """Opens the mirror of a run of this name, in a folder and on the hub."""
    place = str(tmp_path / "drive") if request.param == "drive" else "hf:owner/name"
    return lambda run: Mirror(place, run)


def send(to: Mirror, run: Path, pruned: tuple[Path, ...] = ()) -> None:
    to.copy(run, pruned)
    to.wait()


def names(there: Mirror) -> list[str]:
    return sorted(path.name for path in there._there())


def test_what_is_pruned_is_deleted_and_nothing_else(
    run: Path, tmp_path: Path, hub: Hub, there: Callable[[str], Mirror]
) -> None:
    """Two runs share a place; a machine that was restored has the newest checkpoints alone. The
    hub frees room only where its history is squashed.
    """
    path = checkpoints.newest_checkpoint(run)
    paths = [path.with_name(f"celeba_ldm_unet_checkpoint_epoch_{n}.pt") for n in range(1, 5)]
    shutil.copy(path, paths[1])
    shutil.copy(path, paths[2])
    first, second = there("first"), there("second")
    for each in (first, second):
        send(each, run)
        send(each, run)
    fresh = tmp_path / "fresh"
    first.restore(fresh)
    assert checkpoints.checkpoints(fresh) == [fresh / path.name for path in (paths[2], paths[1])]
    assert (fresh / path.name).exists() is False
    (fresh / paths[2].name).rename(fresh / paths[3].name)
    send(there("first"), fresh, (fresh / paths[2].name,))
    assert names(first) == [paths[n].name for n in (0, 1, 3)]
    assert names(second) == [paths[n].name for n in (0, 1, 2)]
    assert hub.squashed == bool(first.repository)


def test_a_damaged_older_copy_stops_no_newer_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It is copied again; losses and config follow at once."""
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    send(there, run)
    copied = there.folder / path.name
    copied.write_bytes(b"version https://git-lfs")
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    shutil.copy(path, later)
    (run / "losses.jsonl").write_text('{"step": 1}\n')
    send(there, run)
    assert capsys.readouterr().out == ""
    assert names(there) == [path.name, later.name, "losses.jsonl"]
    assert copied.read_bytes() == path.read_bytes()


def test_a_torn_checkpoint_replaces_no_whole_copy(
    run: Path, there: Callable[[str], Mirror]
) -> None:
    path = checkpoints.newest_checkpoint(run)
    whole, to = path.read_bytes(), there("a run")
    send(to, run)
    path.write_bytes(whole[:500])
    (run / "losses.jsonl").write_text("")
    send(to, run)
    assert names(to) == [path.name, "losses.jsonl"]
    path.unlink()
    to.restore(run)
    assert path.read_bytes() == whole


def test_what_a_killed_copy_left_is_deleted(run: Path, tmp_path: Path) -> None:
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    there.folder.mkdir(parents=True)
    (there.folder / f"{path.name}.1.unfinished").touch()
    send(there, run)
    assert names(there) == [path.name]


@pytest.mark.parametrize(
    "error", [HTTPError("no connection"), HfHubHTTPError("no login", response=Mock())]
)
def test_a_mirror_that_cannot_be_used_does_not_begin_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, error: Exception
) -> None:
    (tmp_path / "file").write_text("in the place of a drive")
    monkeypatch.setattr(hub, "create_repo", Mock(side_effect=error))
    for place in ("hf:owner/name", str(tmp_path / "file")):
        with pytest.raises((HTTPError, OSError)):
            Mirror(place, "x").restore(tmp_path / "run")
