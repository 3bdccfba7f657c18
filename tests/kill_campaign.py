"""Kills a training at random instants, starts it again, and compares it with one never stopped.

Run as a process of its own: `kill_campaign.py FOLDER CONFIG KILLS SEED`, with CONFIG a config in
JSON. Children are forked from this process, which imports everything and computes nothing, so that
a start costs a tenth of a second. Prints a summary as JSON; exits 1 if any run ended differently.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from what_is_left import difference, left_in

import config as config_module
from files import UNFINISHED
from settings import from_dict

WRITING = f"celeba_ldm_unet_checkpoint_*{UNFINISHED}"
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


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
        from training import experiment
        from training.loop import train

        torch.set_num_threads(1)
        for _ in train(experiment.Experiment(config).open_all()):
            pass
    except BaseException:
        import traceback

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
    import models.device
    import training.experiment  # so that every child has it already

    assert training.experiment
    # A processor without bfloat16 computes it as well, only slowly.
    models.device.has_bfloat16 = lambda device: True
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
