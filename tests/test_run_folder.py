"""The run folder: one run at a time, its config and its losses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import config as config_module
import settings
from config import Config
from training import run_folder

ROOT = Path(__file__).resolve().parents[1]


def small_config() -> Config:
    return config_module.smoke()


# --- one run at a time ---

HOLDER = """
import sys
from pathlib import Path
from training import run_folder
with run_folder.hold(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen:
    """Another process that holds the folder `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_with_the_first_ones_process_and_time(
    holder: subprocess.Popen, tmp_path: Path
) -> None:
    named = rf"process {holder.pid} on .* since 20"
    for attempt in (run_folder.require_free, lambda folder: run_folder.hold(folder).__enter__()):
        with pytest.raises(run_folder.RunFolderInUse, match=named):
            attempt(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(
    holder: subprocess.Popen, tmp_path: Path
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert f"process {holder.pid}" in (tmp_path / "run.lock").read_text()
    run_folder.require_free(tmp_path)
    with run_folder.hold(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text()


def test_a_folder_can_be_held_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_folder.hold(tmp_path):
        raise ZeroDivisionError
    with run_folder.hold(tmp_path), pytest.raises(run_folder.RunFolderInUse):
        run_folder.require_free(tmp_path)


# --- config and losses ---


def test_the_config_can_be_read_back(tmp_path: Path) -> None:
    run_folder.write_config(tmp_path / "new", small_config(), {"torch": "1"})
    values = json.loads((tmp_path / "new" / "config.json").read_text())
    assert settings.from_dict(values["config"]) == small_config()
    assert values["environment"] == {"torch": "1"}


@pytest.mark.parametrize("step", [0, 2, 5, 9])
def test_losses_after_a_step_are_forgotten(tmp_path: Path, step: int) -> None:
    lines = [{"step": n, "loss": n / 10, "loss_by_timestep": [None, 0.5]} for n in range(1, 6)]
    (tmp_path / "losses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_folder.cut_losses(tmp_path, step)
    assert run_folder.read_losses(tmp_path) == lines[:step]
    assert (tmp_path / "losses.jsonl").read_text().count("\n") == min(step, 5)


def test_no_losses_yet(tmp_path: Path) -> None:
    run_folder.cut_losses(tmp_path, 3)
    assert run_folder.read_losses(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_of_losses_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "losses.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    run_folder.cut_losses(tmp_path, 1)
    assert run_folder.read_losses(tmp_path) == [{"step": 1, "loss": 0.5}]
