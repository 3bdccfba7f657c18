"""What the benchmarks rest on; their timings are never asserted."""

import dataclasses
import json
import lzma
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tape import TapeRecorder

from benchmarks import agreement, cpu, gpu, gpu_leg, gpu_stages, timing, worker
from benchmarks.report import Report
from config import ROOT, get_config
from custom_datasets.captions import describe
from custom_datasets.celeba_files import ATTRIBUTES
from training import loop

# --- the clock ---


def test_jobs_alternate_and_their_first_block_does_not_count() -> None:
    both = Mock()
    both.a.block.side_effect = [{"clock": seconds} for seconds in (9, 1, 3)]
    both.b.block.side_effect = [{"clock": seconds} for seconds in (99, 4, 6)]
    times = timing.alternate({"a": both.a, "b": both.b}, 0, "test")
    assert [name for name, *_ in both.mock_calls] == ["a.block", "b.block"] * 3
    assert timing.ratio(times["a"], times["b"], "clock") == "2.5 [2, 4]"


PARENT = """
from benchmarks.timing import Worker
with Worker("sleeping", 60) as worker:
    print(worker.process.pid, flush=True)
    worker.block(60)
"""


def is_running(process: int) -> bool:
    """One that has ended may wait as a zombie for whoever adopted it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_children_end_with_their_parent() -> None:
    """Even where a signal that no process can catch ends it, in the middle of a computation."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(1)  # the child has begun
        assert is_running(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < deadline, "the child goes on"
        time.sleep(0.05)


def test_two_jobs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.1)
    jobs = {"this": (("sleeping", 0.02), ROOT), "other": (("sleeping", 0.04), ROOT)}
    found = cpu.compared("sleeping", jobs, 0, 1)
    assert found["seconds of this"] < found["seconds of other"]
    assert 1 < float(found["times longer"].split()[0]) < 4


# --- what is timed ---


@pytest.mark.parametrize(
    "job",
    [
        ("training_step", "smoke", "2"),
        ("benchmarks.diffusers_peer:training_step", "smoke", "2"),
        ("benchmarks.diffusers_peer:our_sampling", "smoke", "ddim", "1"),
        ("benchmarks.diffusers_peer:pipeline_sampling", "smoke", "ddim", "1"),
    ],
    ids=lambda job: job[0],
)
def test_each_job_runs(job: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_DEVICE", "cpu")
    assert worker.timed(worker.prepared(*job), 0)["clock"] > 0


# --- a GPU ---


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "gpu", torch.device("cpu"), minutes=1)


def test_a_stage_that_fails_or_finds_no_time_leaves_the_others(report: Report) -> None:
    def fail() -> dict[str, float]:
        raise torch.OutOfMemoryError("60 GiB are missing")

    report.add("first", fail)
    report.add("second", lambda: {"ms": 2.0})
    report.add("third", lambda: pytest.fail("there is no time"), reserve=61)
    failed, done, left_out = json.loads((report.folder / "results.json").read_text())["rows"]
    assert "60 GiB" in failed["failed"]
    assert done["ms"] == 2 and "left_out" in left_out
    assert report.failed() == ["first"]


def test_the_best_way_is_the_fastest_at_the_largest_batch_that_agrees(report: Report) -> None:
    rates = [("eager", 32, 90), ("graph", 256, 50), ("eager", 256, 20), ("compiled", 256, 70)]
    names = ("way", "batch", "images_per_second")
    report.rows += [{"ms": 1.0} | dict(zip(names, rate, strict=True)) for rate in rates]
    assert report.best_way() == "eager"  # of the others nobody knows whether they are right
    report.rows += [{"way": way, "agrees": True} for way in ("graph", "compiled")]
    assert report.best_way() == "compiled"
    report.rows.append({"stage": "bf16, compiled", "way": "compiled", "agrees": False})
    assert report.best_way() == "graph" and report.failed() == ["bf16, compiled"]


@pytest.mark.parametrize("kernel", ["conv2d", "group_norm"])
def test_a_device_with_a_wrong_kernel_does_not_agree(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, again = agreement.in_float32(2), agreement.in_float32(2)
    assert agreement.compared(again, wanted, agreement.EXACT)["agrees"]
    real = getattr(torch.nn.functional, kernel)

    def wrong(values: torch.Tensor, *others: object, **named: object) -> torch.Tensor:
        return real(values, *others, **named) * (1.0 if values.is_contiguous() else 1.01)

    monkeypatch.setattr(torch.nn.functional, kernel, wrong)
    found = agreement.in_float32(2)
    assert not agreement.compared(found, wanted, agreement.EXACT)["agrees"]


def test_what_is_not_a_number_does_not_agree() -> None:
    values = torch.ones(3)
    wanted = agreement.Steps(values, values, values, 1.0, 3)
    for change in ({"update": values * torch.nan}, {"moved": 2}, {"losses": values * 1.1}):
        found = dataclasses.replace(wanted, **change)
        assert not agreement.compared(found, wanted, agreement.HALF)["agrees"]


@pytest.fixture
def encoded_faces(tmp_path: Path) -> list[str]:
    """Sixteen faces of the official forty as latents, and the options that name them."""
    folder = tmp_path / "latents"
    folder.mkdir()
    values = np.random.default_rng(0).integers(-100, 100, (16, 8, 8, 8), np.int8)
    with lzma.open(folder / "latents.npy.xz", "w") as file:
        np.save(file, values)
    np.save(folder / "indices.npy", np.arange(0, 32, 2, dtype=np.int32))
    signs = np.random.default_rng(1).choice(["1", "-1"], (40, 40))
    rows = [f"{i}.jpg {' '.join(row)}" for i, row in enumerate(signs)]
    annotation = tmp_path / "annotation.txt"
    annotation.write_text("\n".join(["40", " ".join(ATTRIBUTES), *rows]) + "\n")
    return ["--latents", str(folder), "--attributes", str(annotation)]


def test_given_latents_are_read_with_their_own_captions(encoded_faces: list[str]) -> None:
    latents, indices = gpu_leg.read_latents(Path(encoded_faces[1]))
    _, attributes = gpu_leg.read_attributes(Path(encoded_faces[3]))
    posterior = latents.fetch(np.array([3, 0]), np.zeros(2, bool))
    assert torch.equal(posterior.mean[1] * 31.75, torch.from_numpy(latents.values[0]).float())
    assert not posterior.std.any()
    leg = gpu_leg.Leg(get_config("smoke"), latents, indices, attributes, 1.0, None)
    assert leg.caption(3) == describe(attributes[6], 6, 0, leg.config.training.seed)
    others = set(range(40)) - set(indices.tolist())
    unseen = {describe(attributes[i], i, 0, gpu_leg.CAPTION_SEED) for i in others}
    assert set(leg.unseen_captions()) == unseen


def test_the_rehearsal_runs_every_stage(
    encoded_faces: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without Triton, with a tape for a graph."""

    def recorder(device: torch.device) -> TapeRecorder | None:
        return TapeRecorder(device) if os.environ["LDM_GRAPHS"] == "1" else None

    monkeypatch.setattr(loop, "open_recorder", recorder)
    monkeypatch.setattr(loop, "_reads_for_free", lambda value: False)
    monkeypatch.setattr(gpu_stages, "ways", lambda device: ["eager", "graph"])
    monkeypatch.setattr(gpu_stages, "QUICK", gpu_stages.Case("smoke", (2,), 64, 1, 1))
    monkeypatch.setattr(agreement, "with_cpu", lambda device: {"agrees": True})
    monkeypatch.setenv("LDM_DEVICE", "cpu")
    recipe = ("training.batch_size=8", "training.warmup_steps=0", "sampling.steps=1")
    changes = [f"--set={change}" for change in recipe]
    options = ["--quick", "--minutes", "30", "--train", "0.05", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["gpu", *options, *encoded_faces, *changes])
    gpu.main()
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not [row for row in kept["rows"] if "failed" in row or "left_out" in row]
    rows = {row["stage"]: row for row in kept["rows"]}
    assert rows["2 samples, eager"]["share_of_matrix_rate"] > 0
    (graph,) = (row for stage, row in rows.items() if "graph, as eager" in stage)
    assert graph["agrees"] and graph["gradient"] == 0 and graph["moved"] == agreement.STEPS
    assert rows["training"]["images"] > 0 and rows["training"]["loss"] > 0
    assert np.load(tmp_path / "out" / "latents.npy").shape == (8, 8, 8, 8)
    assert (tmp_path / "out" / "unet" / "config.json").is_file()
    with pytest.raises(SystemExit):  # its results stay
        gpu.main()
