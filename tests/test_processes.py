"""One run on any number of processes: gloo on the CPU, as `accelerate launch` starts them.

The sums of a gradient are added up in another order: losses agree within 1e-4 of those of one
process, weights within 1 % of what the steps move them, all together (AdamW divides the smallest
gradients by their own size, and with them their rounding).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import Opening

from config import Config
from settings import override
from training import checkpoints, run_folder
from training.loop import train
from training.processes import require_same

ROOT = Path(__file__).resolve().parents[1]
MOVED = 6 * 7e-4  # six steps of AdamW move a weight by the learning rate each, at most

# Trains in the folder of the first argument; prints the faces of each step that it computed.
TRAIN = """
import json, os, sys
from pathlib import Path
import config
config.ROOT = Path(sys.argv[1])
from settings import from_dict
from training import experiment
from training.loop import train
Path(sys.argv[3]).with_suffix(f".pid{os.getpid()}").touch()
values = from_dict(json.loads(Path(sys.argv[2]).read_text()), config.Config)
opened = experiment.Experiment(values).open_all()
for step in train(opened):
    mine = opened.batches.faces(step.number - 1)[list(opened.batches.slots)]
    faces = dict(step=step.number, faces=mine.tolist(), process=os.getpid())
    with open(sys.argv[3], "a") as log:
        log.write(json.dumps(faces) + "\\n")
opened.close()
"""


def settled(tiny_config: Config) -> Config:
    """A run of six steps of eight faces that saves at every step."""
    plain = {"mixed_precision": "no", "tracker": None, "validation_faces": 6}
    saving = {"save_every_minutes": 0.0, "keep_last": 100, "keep_every_n_epochs": 100}
    return override(tiny_config, {"training": plain | saving})


def launch(processes: int, root: Path, config: Config) -> subprocess.Popen:
    """`TRAIN` in so many processes; errors go to <root>.err."""
    root.parent.mkdir(parents=True, exist_ok=True)
    (values := root.parent / "config.json").write_text(json.dumps(config.to_dict()))
    (code := root.parent / "train_many.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    places = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [*launcher, code, root, values, root.with_suffix(".faces")]
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=os.environ | places,
        stdout=root.with_suffix(".out").open("a"),
        stderr=root.with_suffix(".err").open("a"),
        start_new_session=True,
    )


def kill_after_a_checkpoint(process: subprocess.Popen, root: Path) -> None:
    """Kill the launcher and its workers, as soon as they have saved one."""
    deadline = time.monotonic() + 240
    while not checkpoints.checkpoints(folder_of(root)):
        assert process.poll() is None and time.monotonic() < deadline, errors_of(root)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    for mark in root.parent.glob(f"{root.name}.pid*"):  # of workers: in groups of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(mark.suffix.removeprefix(".pid")), signal.SIGKILL)
    process.wait()
    time.sleep(0.5)


def errors_of(root: Path) -> str:
    return root.with_suffix(".err").read_text()[-4000:]


def folder_of(root: Path) -> Path:
    return root / "checkpoints" / "test"


def assert_same_run(one: Path, other: Path) -> None:
    """The same losses, weights and average at the end."""
    losses = [
        {line["step"]: line["loss"] for line in run_folder.read_losses(folder_of(root))}
        for root in (one, other)
    ]
    assert losses[0].keys() == losses[1].keys()
    for step, loss in losses[0].items():
        assert losses[1][step] == pytest.approx(loss, rel=1e-4), step
    held_out = [run_folder.read_validation(folder_of(root)) for root in (one, other)]
    assert held_out[0] and len(held_out[0]) == len(held_out[1])
    for a, b in zip(*held_out, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-3), a["epoch"]
    found = [checkpoints.open_newest(folder_of(root))[1] for root in (one, other)]
    assert found[0].step == found[1].step
    for part in ("unet", "ema"):
        one_weights, other_weights = (getattr(checkpoint, part) for checkpoint in found)
        differences = [(other_weights[name] - one_weights[name]).flatten() for name in one_weights]
        assert torch.cat(differences).square().mean().sqrt() < 0.01 * MOVED, part


@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of processes to kill")
def test_a_run_goes_from_two_processes_to_three(
    tiny_config: Config, start: Opening, tmp_path: Path
) -> None:
    """Killed in between, it ends as that of one process. Three share eight faces unevenly."""
    alone, root = start(settled(tiny_config), "alone"), tmp_path / "moving"
    list(train(alone.open_all()))
    kill_after_a_checkpoint(launch(2, root, settled(tiny_config)), root)
    (faces := root.with_suffix(".faces")).unlink(missing_ok=True)
    assert launch(3, root, settled(tiny_config)).wait(300) == 0, errors_of(root)
    assert_same_run(tmp_path / "alone", root)
    lines = [json.loads(line) for line in faces.read_text().splitlines()]
    assert len({line["process"] for line in lines}) == 3
    for step in {line["step"] for line in lines}:
        shown = [face for line in lines if line["step"] == step for face in line["faces"]]
        assert sorted(shown) == sorted(alone.batches.faces(step - 1)), step
    assert root.with_suffix(".err").read_text().count("encoding") == 1  # one process speaks


@pytest.mark.parametrize("others", [["judge"], []])
def test_what_differs_between_processes_is_refused(
    others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.processes.gather_object", lambda mine: [*mine, others])
    if others:
        require_same(["judge"], "networks")
    else:
        with pytest.raises(ValueError, match="networks"):
            require_same(["judge"], "networks")
