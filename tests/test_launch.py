"""The SLURM job: it queues again where it is stopped, and its state is that of the training."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "launch" / "slurm.sbatch"
JOB = {"JOB_ID": "7", "JOB_NODELIST": "here", "NNODES": "1", "GPUS_PER_NODE": "8"}
# Of SLURM's commands what the job sees of them; `srun` notes its process, which `scancel` stops.
COMMANDS = {
    "scontrol": 'echo "$*" >> scontrol.log; echo here',
    "scancel": 'kill "$(cat srun.pid)"',
}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SLURM runs on Linux")


def submit(folder: Path, training: str) -> subprocess.Popen:
    """The job, whose training is this line of a shell."""
    commands = COMMANDS | {"srun": f"echo $$ > srun.pid; {training}"}
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    own = {f"SLURM_{name}": value for name, value in JOB.items()}
    own["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(["bash", str(SCRIPT)], cwd=folder, env=os.environ | own)


@pytest.mark.parametrize("status", [0, 3])
def test_the_job_ends_as_its_training(tmp_path: Path, status: int) -> None:
    assert submit(tmp_path, f"exit {status}").wait(60) == status
    assert "requeue" not in (tmp_path / "scontrol.log").read_text()


def test_a_job_that_is_stopped_queues_again(tmp_path: Path) -> None:
    job = submit(tmp_path, "exec sleep 60")
    give_up_at = time.monotonic() + 30
    while not (tmp_path / "srun.pid").is_file() or not (tmp_path / "srun.pid").read_text():
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    job.wait(60)
    assert "requeue 7" in (tmp_path / "scontrol.log").read_text()
