"""Checkpoints that survive a crash, refuse what is not theirs, and are found in order."""

import os
import random
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from conftest import difference

from config import Config, get_config
from training import checkpoints, run_folder
from training.checkpoints import Checkpoint, Fingerprint

NAME = "celeba_ldm_unet_checkpoint_epoch_1.pt"


def small_config() -> Config:
    return get_config("smoke", ["unet.widths=32,32"])


def checkpoint(fill: float = 1.5) -> Checkpoint:
    """A checkpoint with every kind of value that a real one has."""
    weights = {"a": torch.full((3, 4), fill), "b": torch.tensor(7)}
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.full((2,), fill)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
    average = {name: value * 2 for name, value in weights.items()}
    return Checkpoint(
        config=small_config(),
        epoch=1,
        step=3,
        fingerprint=Fingerprint(24, ""),
        unet=weights,
        ema=average,
        optimizer=optimizer,
        updates=3,
    )


def write(folder: Path, **values: Any) -> Path:
    """The file of a checkpoint with some of its fields replaced."""
    path = folder / NAME
    checkpoints.save_checkpoint(path, checkpoint())
    torch.save(torch.load(path, weights_only=True) | values, path)
    return path


def assert_whole(path: Path, fill: float = 1.5) -> None:
    loaded, want = (vars(each) for each in (checkpoints.load_checkpoint(path), checkpoint(fill)))
    stored = [checkpoints.stored_config(values["config"]) for values in (loaded, want)]
    assert stored[0] == stored[1]
    assert difference(loaded | {"config": None}, want | {"config": None}) == ""


# --- files that are not whole, or not ours ---


class Attack:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the code ran",)


def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NAME):
        checkpoints.load_checkpoint(write(tmp_path, step=Attack()))


def test_a_config_of_another_version_is_refused(tmp_path: Path) -> None:
    values = small_config().to_dict()
    values["training"]["momentum"] = values["training"].pop("warmup_steps")
    with pytest.raises(checkpoints.OtherVersion, match="momentum"):
        checkpoints.load_checkpoint(write(tmp_path, config=values))
    with pytest.raises(checkpoints.OtherVersion, match="version"):
        checkpoints.load_checkpoint(write(tmp_path, version=checkpoints.VERSION + 1))


def test_a_run_trained_anew_has_another_identity(tmp_path: Path) -> None:
    checkpoints.save_checkpoint(tmp_path / NAME, checkpoint())
    first = checkpoints.identity(tmp_path / NAME)
    assert first.startswith(f"{NAME} ")
    checkpoints.save_checkpoint(tmp_path / NAME, checkpoint(1.5000001))
    assert checkpoints.identity(tmp_path / NAME) != first
    checkpoints.save_checkpoint(tmp_path / NAME, checkpoint())
    assert checkpoints.identity(tmp_path / NAME) == first


def test_any_altered_byte_of_the_weights_is_noticed(tmp_path: Path) -> None:
    """torch alone reads altered weights without complaint."""
    path = tmp_path / NAME
    checkpoints.save_checkpoint(path, checkpoint())
    whole, rng = path.read_bytes(), random.Random(1)
    for place in rng.sample(range(len(whole)), 150):
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        try:
            assert_whole(path)  # a bit of padding, then: what is read is what was written
        except ValueError as error:
            assert NAME in str(error)


# --- retention, and going on past damage ---


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_checkpoint(tmp_path / NAME, checkpoint())

    def fill(values: Any, file: BinaryIO) -> None:  # torch's writer hides the system's error
        file.write(b"half")
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_checkpoint(tmp_path / NAME, checkpoint(2.5))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert_whole(tmp_path / NAME)


def test_a_damaged_checkpoint_is_passed_over_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = [checkpoints.checkpoint_path(tmp_path, n, n, True) for n in (1, 2, 3)]
    for path in paths:
        checkpoints.save_checkpoint(path, checkpoint())
    os.truncate(paths[2], 900)
    path, opened = checkpoints.open_newest(tmp_path)
    assert path == paths[1] and opened.step == 3
    assert f"passed over: {paths[2]} is not a whole checkpoint" in capsys.readouterr().out
    assert checkpoints.find(tmp_path) == paths[1]
    for path in paths:
        path.write_bytes(b"lost")
    with pytest.raises(ValueError, match=paths[0].name):
        checkpoints.open_newest(tmp_path)


def test_the_last_the_best_and_every_nth_are_kept(tmp_path: Path) -> None:
    """Those that lie ahead are damaged, and take no place among the last."""
    checkpoints.checkpoint_path(tmp_path, 30, 900, False).touch()
    for epoch in range(1, 13):
        checkpoints.checkpoint_path(tmp_path, epoch, epoch, True).touch()
        checkpoints.checkpoint_path(tmp_path, epoch, 10 * epoch + 5, False).touch()
    saved = checkpoints.checkpoint_path(tmp_path, 12, 125, False)
    for path in checkpoints.superfluous(saved, last=3, every_n_epochs=5, best=7):
        path.unlink()
    found = [checkpoints.progress_in_name(path) for path in checkpoints.checkpoints(tmp_path)]
    assert found[-6:] == [(12, 125), (12, 0), (11, 115), (10, 0), (7, 0), (5, 0)]


def validate(folder: Path, losses: dict[int, float], faces: int = 4, key: str = "") -> None:
    lines = [
        {"step": 3 * epoch, "epoch": epoch, "loss": loss, "faces": key, "losses": [loss] * faces}
        for epoch, loss in losses.items()
    ]
    run_folder.append_lines(folder / run_folder.VALIDATION, lines)


def test_the_best_epoch_is_that_of_the_lowest_loss(tmp_path: Path) -> None:
    assert checkpoints.best_epoch(tmp_path) is None
    validate(tmp_path, {1: 3.0, 2: 1.25, 3: 4.75, 4: 2.0})
    assert checkpoints.best_epoch(tmp_path) is None
    for epoch in (1, 3, 4, 5):
        checkpoints.checkpoint_path(tmp_path, epoch, 2 * epoch, True).touch()
    checkpoints.checkpoint_path(tmp_path, 2, 5, False).touch()  # within the third epoch
    assert checkpoints.best_epoch(tmp_path) == 4
    checkpoints.checkpoint_path(tmp_path, 2, 4, True).touch()
    assert checkpoints.best_epoch(tmp_path) == 2
    validate(tmp_path, {5: 3.5}, faces=5)  # the fewer ones may be the easier ones
    assert checkpoints.best_epoch(tmp_path) == 5
    validate(tmp_path, {3: 9.0}, faces=5, key="of other faces")
    assert checkpoints.best_epoch(tmp_path) == 3


def test_a_checkpoint_is_found_by_epoch_as_the_best_and_by_path(tmp_path: Path) -> None:
    paths = {n: checkpoints.checkpoint_path(tmp_path, n, 2 * n, True) for n in (1, 2, 10)}
    for path in paths.values():
        checkpoints.save_checkpoint(path, checkpoint())
    assert checkpoints.find(tmp_path) == paths[10]
    assert checkpoints.find(tmp_path, "2") == paths[2]
    assert checkpoints.find(tmp_path, paths[1].name) == paths[1]
    assert checkpoints.find(tmp_path / "elsewhere", str(paths[1])) == paths[1]
    for absent in ("3", "best", "nothing.pt", ""):
        with pytest.raises(FileNotFoundError, match=r"epochs 1, 2, 10"):
            checkpoints.find(tmp_path, absent)
    validate(tmp_path, {1: 2.0, 2: 1.0, 10: 1.5})
    assert checkpoints.find(tmp_path, "best") == paths[2]


def test_a_checkpoint_that_is_pruned_while_it_is_opened_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A run that trains meanwhile saves the next one and deletes the one that was listed."""
    first, second = (checkpoints.checkpoint_path(tmp_path, n, n, True) for n in (1, 2))
    checkpoints.save_checkpoint(first, checkpoint())
    really = torch.load

    def prune(path: Path, **options: Any) -> Any:  # between the check of the file and its opening
        if path == first:
            checkpoints.save_checkpoint(second, checkpoint(2.5))
            first.unlink()
        return really(path, **options)

    monkeypatch.setattr(torch, "load", prune)
    path, opened = checkpoints.open_newest(tmp_path)
    assert path == second and opened.unet["a"][0, 0] == 2.5
    assert capsys.readouterr().out == ""
    with pytest.raises(FileNotFoundError, match=first.name):
        checkpoints.load_checkpoint(first)
