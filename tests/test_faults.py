"""Breaks runs for real: kills at random instants, a full disk, several processes.

The quick form; `make torture` kills more than two hundred times (LDM_TORTURE_KILLS, a precision).
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from config import Config
from training import checkpoints

ROOT = Path(__file__).resolve().parents[1]
KILLS = int(os.environ.get("LDM_TORTURE_KILLS", "8"))


def training_config(tiny_config: Config, **changes: object) -> Config:
    """A run of some twenty steps that saves at every step."""
    settings = {
        "num_epochs": 6,
        "mixed_precision": "no",
        "save_every_minutes": 0.0,
        "keep_last": 3,
        "keep_every_n_epochs": 100,
    }
    training = dataclasses.replace(tiny_config.training, **(settings | changes))
    return dataclasses.replace(tiny_config, training=training)


def run_script(script: str | Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run Python code, or a script, in a process of its own that finds the repository."""
    command = ["-c", script] if isinstance(script, str) else [str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_killed_at_random_instants_ends_as_one_never_stopped(
    tiny_config: Config, tmp_path: Path, precision: str
) -> None:
    config = training_config(tiny_config, mixed_precision=precision)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    campaign = Path(__file__).with_name("kill_campaign.py")
    places = (tmp_path / "campaign", tmp_path / "config.json")
    finished = run_script(campaign, *places, KILLS, 0)
    print(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    counts = json.loads(finished.stdout)
    assert counts["kills"] == KILLS and counts["runs"] > 0 and counts["different"] == 0


# --- a full disk ---

TRAIN = """
import json, sys
from pathlib import Path
import config
config.ROOT = Path(sys.argv[1])
from config import from_dict
from training import experiment
from training.loop import train
values = from_dict(json.loads(Path(sys.argv[2]).read_text()), config.Config)
opened = experiment.Experiment(values).open_all()
for step in train(opened):
    print("step", step.number, flush=True)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_what_was_there(
    tiny_config: Config, tmp_path: Path, small_disk: Path
) -> None:
    config = training_config(tiny_config, keep_last=100)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    stopped = run_script(TRAIN, small_disk, tmp_path / "config.json")
    assert stopped.returncode != 0
    last = stopped.stderr.splitlines()[-1]
    assert "cannot save" in last and "No space left" in last and "before is intact" in last
    folder = small_disk / "checkpoints" / "test"
    saved = checkpoints.checkpoints(folder)
    assert saved and not list(folder.glob("*.tmp"))
    for path in saved:
        checkpoints.load_checkpoint(path)
    for path in saved[1:]:
        path.unlink()  # the user makes room
    more = dataclasses.replace(config.training, keep_last=1)
    (tmp_path / "config.json").write_text(
        json.dumps(dataclasses.replace(config, training=more).to_dict())
    )
    finished = run_script(TRAIN, small_disk, tmp_path / "config.json")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert int(finished.stdout.split()[1]) > 1, "it went on from what was saved"
    whole = run_script(TRAIN, tmp_path / "whole", tmp_path / "config.json")
    assert whole.returncode == 0
    _, found = checkpoints.open_newest(folder)
    _, want = checkpoints.open_newest(tmp_path / "whole" / "checkpoints" / "test")
    assert all(torch.equal(found.ema[name], value) for name, value in want.ema.items())
