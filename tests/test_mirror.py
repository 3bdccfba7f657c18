"""The mirror: whole files only, each once, and a fresh machine goes on from them."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub.errors import HTTPError

import config as config_module
from config import Config
from training import checkpoints, mirror, run_folder
from training.experiment import Experiment
from training.loop import train
from training.mirror import Mirror

CHECKPOINT = "celeba_ldm_unet_checkpoint_epoch_1.pt"


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
    drive, expected = tmp_path / "drive" / "test", {CHECKPOINT, "config.json", "losses.jsonl"}
    give_up_at = time.monotonic() + 60
    while {path.name for path in drive.iterdir()} != expected:  # a thread copies
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
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
    really, calls = shutil.copyfile, []

    def copyfile(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            raise OSError(107, "Transport endpoint is not connected")
        really(source, target)

    monkeypatch.setattr(mirror.shutil, "copyfile", copyfile)
    opened = machine("first")
    assert len(list(train(opened))) == 6
    said = capsys.readouterr().out
    assert "not copied to the mirror" in said and "not connected" in said
    drive = Mirror(str(tmp_path / "drive"), "test")
    kept = {path.name for path in checkpoints.checkpoints(opened.folder)}
    assert {name for name in drive.names() if name.endswith(".pt")} == kept


def test_a_checkpoint_is_copied_once_and_what_is_pruned_is_deleted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, copies = shutil.copyfile, []
    monkeypatch.setattr(
        mirror.shutil, "copyfile", lambda a, b: copies.append(a.name) or really(a, b)
    )
    there = Mirror(str(tmp_path / "drive"), "a run")
    path = checkpoints.newest_checkpoint(run)
    for _ in range(3):
        there.copy(run, path)
    there.wait()
    assert copies.count(path.name) == 1
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    path.replace(later)
    there.copy(run, path)
    there.wait()
    assert there.names() == [path.name, later.name]  # gone here, but not pruned
    there.copy(run, later, [path])
    there.wait()
    assert there.names() == [later.name]


@pytest.mark.parametrize("damage", [b"", b"version https://git-lfs", None])
def test_a_damaged_older_copy_stops_no_newer_one(
    run: Path, tmp_path: Path, damage: bytes | None, capsys: pytest.CaptureFixture
) -> None:
    """It is copied again; losses and config follow at once."""
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    there.copy(run, path)
    there.wait()
    copied = there.folder / path.name
    copied.write_bytes(copied.read_bytes()[:5000] if damage is None else damage)
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    shutil.copy(path, later)
    (run / "losses.jsonl").write_text('{"step": 1}\n')
    there.copy(run, path)
    there.wait()
    assert capsys.readouterr().out == ""
    assert set(there.names()) == {path.name, later.name, "losses.jsonl"}
    assert copied.read_bytes() == path.read_bytes()


def test_a_damaged_copy_is_passed_over(run: Path, tmp_path: Path) -> None:
    there, path = Mirror(str(tmp_path / "drive"), "a run"), checkpoints.newest_checkpoint(run)
    there.copy(run, path)
    there.wait()
    torn = there.folder / "celeba_ldm_unet_checkpoint_epoch_9.pt"
    torn.write_bytes(path.read_bytes()[:5000])
    fresh = tmp_path / "fresh"
    there.restore(fresh)
    found, _ = checkpoints.open_newest(fresh)
    assert found == fresh / path.name
    found.unlink()
    there.restore(fresh)  # the run folder has one of its own
    assert not found.exists()


def test_what_a_fresh_machine_did_not_fetch_stays(run: Path, tmp_path: Path) -> None:
    """It fetches the newest checkpoints alone; the mirror keeps every n-th epoch and the best."""
    drive, path = str(tmp_path / "drive"), checkpoints.newest_checkpoint(run)
    for epoch in (2, 3):
        shutil.copy(path, path.with_name(f"celeba_ldm_unet_checkpoint_epoch_{epoch}.pt"))
    first = Mirror(drive, "a run")
    first.copy(run, path)
    first.wait()
    fresh = tmp_path / "fresh"
    first.restore(fresh)
    assert [checkpoints.progress_in_name(p)[0] for p in checkpoints.checkpoints(fresh)] == [3, 2]
    second = Mirror(drive, "a run")
    second.copy(fresh, fresh / path.name)
    second.wait()
    assert len(second.names()) == 3


class Hub:
    """The hub's client over a folder, for one private repository that never forgets a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.history = folder, folder.with_name("history")

    def repo_exists(self, repository: str) -> bool:
        return self.folder.exists()

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok
        self.folder.mkdir(exist_ok=True)

    def list_repo_files(self, repository: str) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in files]

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, path_in_repo: str, allow_patterns: list[str]
    ) -> None:
        for name in allow_patterns:
            if (folder_path / name).is_file():
                for place in (self.folder, self.history):
                    (place / path_in_repo).mkdir(exist_ok=True, parents=True)
                    shutil.copy(folder_path / name, place / path_in_repo / name)

    def hf_hub_download(self, repository: str, name: str) -> str:
        return str(self.folder / name)

    def delete_file(self, path: str, repository: str) -> None:
        (self.folder / path).unlink()

    def super_squash_history(self, repository: str) -> None:
        shutil.rmtree(self.history)
        shutil.copytree(self.folder, self.history)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(mirror, "HfApi", lambda: Hub(tmp_path / "hub"))
    return Hub(tmp_path / "hub")


def test_two_runs_share_a_repository_of_the_hub(run: Path, tmp_path: Path, hub: Hub) -> None:
    """Each has a folder there, and deletes only what it has pruned itself."""
    path = checkpoints.newest_checkpoint(run)
    first, second = (Mirror("hf:owner/name", name) for name in ("first", "second"))
    first.copy(run, path)
    first.wait()
    later = path.with_name("celeba_ldm_unet_checkpoint_epoch_2.pt")
    path.rename(later)
    second.copy(run, later, [path])
    second.wait()
    content = later.read_bytes()
    assert first.names() == [path.name] and second.names() == [later.name]
    for there, expected in ((first, path.name), (second, later.name)):
        fresh = tmp_path / f"fresh {there.run}"
        there.restore(fresh)
        assert [path.name for path in fresh.iterdir()] == [expected]
        assert (fresh / expected).read_bytes() == content


def test_the_hub_keeps_no_room_for_what_was_pruned(run: Path, hub: Hub) -> None:
    there, path = Mirror("hf:owner/name", "a run"), checkpoints.newest_checkpoint(run)
    for epoch in range(2, 6):
        there.copy(run, path)
        there.wait()
        later = path.with_name(f"celeba_ldm_unet_checkpoint_epoch_{epoch}.pt")
        path.replace(later)
        there.copy(run, later, [path])
        there.wait()
        path = later
    assert [path.name for path in (hub.history / "a run").iterdir()] == [path.name]


class Unreachable:
    """The hub's client without a network."""

    def repo_exists(self, repository: str) -> bool:
        raise HTTPError(f"no connection for {repository}")


def test_a_mirror_that_cannot_be_read_does_not_begin_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the place of a drive")
    monkeypatch.setattr(mirror, "HfApi", Unreachable)
    for place in ("hf:owner/name", str(tmp_path / "file")):
        with pytest.raises(ConnectionError, match=r"training\.mirror"):
            Mirror(place, "x").restore(tmp_path / "run")
