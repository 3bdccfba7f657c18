"""What the benchmarks rest on; their timings are never asserted."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import cpu, diffusers_peer, timing
from config import ROOT, Config, get_config

MODULES = sorted(f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Results go to a folder of the test's own."""
    monkeypatch.setattr(timing, "OUT", tmp_path / "bench")


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_finds_what_it_measures(name: str) -> None:
    importlib.import_module(name)


# --- the clock ---


class Counted:
    """A worker that takes given seconds, and notes its turns."""

    def __init__(self, turns: list[str], name: str, *seconds: float) -> None:
        self.turns, self.name, self.seconds = turns, name, list(seconds)

    def block(self, min_seconds: float) -> dict[str, float]:
        self.turns.append(self.name)
        taken = self.seconds.pop(0)
        return {"clock": taken, "processor": 2 * taken}


def test_jobs_alternate_and_their_first_block_does_not_count() -> None:
    turns: list[str] = []
    workers = {"a": Counted(turns, "a", 9, 1, 3), "b": Counted(turns, "b", 99, 4, 6)}
    times = timing.alternate(workers, 0, "test")
    assert turns == ["a", "b"] * 3
    assert times["a"].clock == [1, 3] and times["b"].processor == [8, 12]
    found = timing.ratio(times["a"], times["b"])
    assert found == {"ratio": 2.5, "min": 2, "max": 4, "rounds": 2}


def test_a_block_repeats_its_job_and_gives_the_mean() -> None:
    with timing.Worker("sleeping", 0.01) as worker:
        begin = time.perf_counter()
        taken = [worker.block(0.2)["clock"] for _ in range(2)]
        assert time.perf_counter() - begin > 0.4
    assert min(taken) > 0.01 and max(taken) < 0.2


def test_a_job_that_fails_says_why() -> None:
    with timing.Worker("sleeping", "x") as worker, pytest.raises(RuntimeError, match="'x'"):
        worker.block(1)


@pytest.mark.skipif(sys.platform == "win32", reason="reads process numbers as POSIX has them")
def test_a_worker_ends_with_its_parent() -> None:
    """In the middle of a block too, however its parent ends."""
    code = (
        "from benchmarks.timing import Worker\n"
        "with Worker('sleeping', 60) as worker:\n"
        "    print(worker.process.pid, flush=True)\n"
        "    worker.block(1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(1)
        parent.kill()
    for _ in range(100):
        if not _runs(worker):
            return
        time.sleep(0.1)
    pytest.fail(f"process {worker} goes on")


def _runs(process: int) -> bool:
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() not in ("", "Z")


def test_results_are_kept_with_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    times = {
        "ours": timing.Times([1, 2, 3], [1, 1, 1]),
        "diffusers": timing.Times([2, 4, 6], [1] * 3),
    }
    kinds = {kind: timing.ratio(*times.values(), kind) for kind in ("clock", "processor")}
    cpu.write("test", [{"what": "a step", "seconds": times, "times_longer": kinds}])
    kept = json.loads((timing.OUT / "test.json").read_text())
    assert kept["rows"][0]["seconds"]["diffusers"]["clock"] == [2, 4, 6]
    assert {"commit", "torch", "cores"} <= set(kept["machine"])
    assert "| a step | 2 | 4 | 2 [2, 2] | 1 [1, 1] |" in capsys.readouterr().out


# --- what is timed ---


@pytest.mark.parametrize(
    "job",
    [
        ("training_step", "smoke", 2),
        ("peer_training_step", "smoke", 2),
        ("sampling", "smoke", "ddim", 1),
        ("peer_sampling", "smoke", "ddim", 1),
    ],
    ids=lambda job: job[0],
)
def test_each_job_runs(job: tuple[object, ...]) -> None:
    with timing.Worker(*job, threads=1) as worker:
        assert worker.block(0)["clock"] > 0


def test_the_peers_step_changes_the_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.nn.Module] = []
    build = diffusers_peer.build_unet

    def noted(shape: object) -> torch.nn.Module:
        built.append(build(shape))
        return built[-1]

    monkeypatch.setattr(diffusers_peer, "build_unet", noted)
    config: Config = get_config("smoke")
    step = diffusers_peer.training_step(config, 2)
    before = built[0].conv_in.weight.detach().clone()
    step()
    assert not torch.equal(built[0].conv_in.weight, before)
