"""Breaks runs for real: kills a training at random instants, starts it again, and compares it with
one never stopped.

The quick form; `make torture` kills 250 times (LDM_TORTURE_KILLS, a precision), half in bfloat16.
What a checkpoint stores is float32 in both.

The campaign is this file as a program: `test_faults.py FOLDER CONFIG KILLS SEED`, with CONFIG a
config in JSON. Children are forked from its process, which imports everything and computes nothing,
so that a start costs a tenth of a second. Prints a summary as JSON; exits 1 if any run ended
differently.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import difference, left_in, run_python

import config as config_module
from files import UNFINISHED
from models import device
from settings import from_dict, override
from training.experiment import Experiment
from training.loop import train

if os.name == "nt":
    pytest.skip("Windows has neither SIGKILL nor fork", allow_module_level=True)

KILLS = int(os.environ.get("LDM_TORTURE_KILLS", "4"))
PRECISIONS = ["no", "bf16"] if "LDM_TORTURE_KILLS" in os.environ else ["no"]
WRITING = f"celeba_ldm_unet_checkpoint_*{UNFINISHED}"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_killed_at_random_instants_ends_as_one_never_stopped(
    tiny_config: config_module.Config, tmp_path: Path, precision: str
) -> None:
    """It saves at every step, and validates after every epoch."""
    settings = {
        "training.num_epochs": 6,
        "training.mixed_precision": precision,
        "training.validation_faces": 6,
        "training.save_every_minutes": 0.0,
        "training.keep_last": 3,
        "training.keep_every_n_epochs": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(override(tiny_config, settings).to_dict()))
    words = (__file__, tmp_path / "all", tmp_path / "config.json", KILLS, 0)
    finished = run_python(*words, timeout=None)
    print(finished.stdout)
    counts = json.loads(finished.stdout)
    assert counts["kills"] == KILLS and counts["runs"] > 0 and counts["different"] == 0


# --- the campaign ---


def train_in(root: Path, config: config_module.Config) -> int:
    """Fork a child that trains to the end in `root`; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        log = os.open(root.parent / f"{root.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        config_module.ROOT = root
        torch.set_num_threads(1)
        for _ in train(Experiment(config).open_all()):
            pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def folder_in(root: Path) -> Path:
    """The run folder."""
    return root / "checkpoints" / "test"


def wait_for_write(folder: Path, child: int) -> None:
    """Return as soon as a checkpoint is being written, or the child has ended."""
    while (
        not any(folder.glob(WRITING))
        and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.0005)


def finish(root: Path, config: config_module.Config) -> dict[str, Any]:
    """Train to the end; what is left."""
    _, status = os.waitpid(train_in(root, config), 0)
    assert status == 0, (root.parent / f"{root.name}.log").read_text()[-3000:]
    return left_in(folder_in(root))


def main() -> None:
    """Run the campaign."""
    home, kills, rng = Path(sys.argv[1]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    config = from_dict(json.loads(Path(sys.argv[2]).read_text()), config_module.Config)
    # A processor without bfloat16 computes it as well, only slowly.
    device.has_bfloat16 = lambda device: True
    (home / "whole").mkdir(parents=True)
    started = time.monotonic()
    want, counts = finish(home / "whole", config), Counter()
    seconds = time.monotonic() - started
    root = home / "killed"
    while counts["kills"] < kills:
        root.mkdir(exist_ok=True)
        for left in root.rglob(WRITING):  # by the kill before: it would look as if one was written
            left.unlink()
        child = train_in(root, config)
        if rng.random() < 0.5:
            wait_for_write(folder_in(root), child)
            time.sleep(rng.uniform(0, 0.004))
        else:
            time.sleep(rng.uniform(0, seconds))
        os.kill(child, rng.choice(SIGNALS))
        _, status = os.waitpid(child, 0)
        counts["kills"] += status != 0
        if status == 0 or counts["kills"] == kills:  # it had finished, or does so now
            counts["different"] += difference(finish(root, config), want) != ""
            counts["runs"] += 1
            shutil.rmtree(root)
    print(json.dumps(counts))
    sys.exit(counts["different"] > 0)


if __name__ == "__main__":
    main()
