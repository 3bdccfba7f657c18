"""What the benchmarks rest on; their timings are never asserted."""

import importlib
import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import host, measure, runs
from benchmarks.gpu import agreement, pictures, resume, training
from benchmarks.gpu import device as clock
from benchmarks.gpu.cases import Case
from benchmarks.gpu.table import Table
from config import ROOT, Config, UNetConfig, celeba_hq
from custom_datasets.captions import describe
from models.custom_unet_celeba_ldm import build_unet, use_plain_attention
from models.text_encoder import TextEncoder
from training.gradients import Gradients
from training.loop import train

CPU = torch.device("cpu")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "benchmarks").rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_finds_what_it_measures(name: str) -> None:
    importlib.import_module(name)


def test_calls_are_timed_in_turn_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(name: str, *seconds: float) -> None:
        clock[0] += seconds[order.count(name)]
        order.append(name)

    times = measure.alternating(
        {"a": lambda: call("a", 9, 1, 5, 2), "b": lambda: call("b", 8, 4, 4, 4)}, rounds=3
    )
    assert order == ["a", "b"] * 4
    assert times["a"] == measure.Timing(2, 1, 5, 3)
    assert times["b"] == measure.Timing(4, 4, 4, 3)


def test_of_several_calls_in_a_turn_the_mean_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def call(name: str, seconds: float) -> None:
        clock[0] += seconds
        order.append(name)

    calls = {"a": lambda: call("a", len(order)), "b": lambda: call("b", 7)}
    times = measure.alternating(calls, rounds=1, warm_up=0, repeats={"a": 3})
    assert order == ["a", "a", "a", "b"]
    assert times["a"].median == 1  # of 0, 1 and 2 seconds
    assert times["b"].median == 7


def test_a_call_apart_runs_in_one_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "processes"
    call = measure.Apart(partial, _note_process, path)
    call(), call()
    call.close()
    first, second = path.read_text().split()
    assert first == second != str(os.getpid())


def _note_process(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")


def test_results_are_kept_with_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "OUT", tmp_path / "bench")
    measure.write("test", {"seconds": measure.Timing(2, 1, 5, 3)})
    kept = json.loads((tmp_path / "bench" / "test.json").read_text())
    assert kept["seconds"] == {"median": 2, "fastest": 1, "slowest": 5, "rounds": 3}
    assert {"commit", "torch", "cores"} <= set(kept["machine"])
    assert "test.json" in capsys.readouterr().out


def test_a_face_has_as_many_wordings_as_the_config_says() -> None:
    attributes = [i % 3 == 0 for i in range(40)]
    wordings = celeba_hq().data.caption_wordings
    texts = {describe(attributes, 7, epoch % wordings) for epoch in range(100)}
    assert 1 < len(texts) <= wordings


# --- runs over random latents ---


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Results go to a folder of the test's own."""
    monkeypatch.setattr(measure, "OUT", tmp_path / "bench")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def text_encoder(tiny_config: Config) -> TextEncoder:
    return TextEncoder.from_pretrained(tiny_config.models.text_encoder)


def test_a_timed_run_trains_and_leaves_nothing(
    tiny_config: Config, text_encoder: TextEncoder
) -> None:
    config = runs.timed(tiny_config, batch_size=2)
    with runs.experiment(config, text_encoder, 4) as opened:
        before = opened.state.unet.conv_out.weight.detach().clone()
        run = train(opened)
        for _ in range(5):  # more than two epochs
            step = next(run)
        run.close()
        assert step.number == 5 and not torch.equal(opened.state.unet.conv_out.weight, before)
        assert not list(opened.folder.glob("*.pt"))
        folder = opened.folder
    assert not folder.exists()


def test_a_step_is_the_sum_of_its_parts() -> None:
    times = host.step_times(tensors=5, batch=2, steps=3)
    parts = {name for name, *_ in host.PARTS}
    assert parts <= set(times)
    assert times["host"] == pytest.approx(times["step"] - times[host.UNET], abs=0.5)
    assert 0 < sum(times[name] for name in parts) <= times["step"] + 0.5


def test_the_time_of_an_inner_part_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(host, "milliseconds", lambda: now[0])
    timer = host.Clock()

    def wait(milliseconds: float) -> None:
        now[0] += milliseconds

    inner = timer.wrapped("inner", lambda: wait(5))
    outer = timer.wrapped("outer", lambda: (wait(2), inner(), wait(1), inner()))
    outer()
    assert timer.spent == {"inner": 10, "outer": 3}


# --- the first hour on a GPU ---


@pytest.fixture
def case(tiny_config: Config, autoencoder_folder: Path) -> Case:
    """The smallest of everything."""
    return Case(
        tiny_config,
        lambda: TextEncoder.from_pretrained(tiny_config.models.text_encoder),
        lambda: AutoencoderKL.from_pretrained(autoencoder_folder),
        batches=(2,),
        micro_batch=1,
        warm_up=1,
        steps=2,
        images=2,
        pictures=(1,),
        sampling_steps=1,
        matrix_size=16,
    )


def test_the_table_has_every_row(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table(clock.describe(CPU))
    table.begin()
    training.add_rows(table, case, CPU)
    pictures.add_rows(table, case, CPU)
    whats = [row.what for row in table.rows]
    precisions = clock.precisions(CPU)
    assert whats.count("matrix products") == len(precisions)
    assert whats.count("training step") == len(precisions) + 3
    assert whats[-3:] == ["decoding", "sampling", "StableDiffusionPipeline"]
    for row in table.rows:
        numbers = [value for value in row.values.values() if isinstance(value, float)]
        assert numbers and all(math.isfinite(value) and value > 0 for value in numbers), row
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows) and {line.count("|") for line in lines} == {4}
    kept = json.loads((tmp_path / "bench" / "gpu.json").read_text())
    assert [row["what"] for row in kept["rows"]] == whats
    assert {"card", "driver", "torch", "commit"} <= set(kept["machine"])


def test_only_a_lack_of_memory_is_a_row_of_its_own(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would go on with half a batch at once, which is another thing to time."""
    table = Table(clock.describe(CPU))
    error: list[Exception] = [torch.OutOfMemoryError("60 GiB are missing")]

    def fail(self: Gradients, batch: object) -> None:
        raise error[0]

    monkeypatch.setattr(Gradients, "_accumulate", fail)
    step = partial(training.step, case, None, 2)
    assert table.add("training step", "batch 2", step, training.show_step) is None
    assert table.rows[0].result == "out of memory" and not table.rows[0].values
    error[0] = RuntimeError("device-side assert triggered")
    with pytest.raises(RuntimeError, match="assert"):
        table.add("training step", "batch 2", step, training.show_step)
    assert len(table.rows) == 1


def test_reads_of_the_host_are_counted() -> None:
    values = torch.ones(3)
    with clock.waits_counted(CPU) as waits:
        (values + 1).double().sum().item()
        bool(values[0] > 0)
    assert len(waits) == 2


def test_operations_are_those_of_a_real_step() -> None:
    shape = UNetConfig(8, 4, (32, 64), 1, 8, 32, text_at_every_layer=True)
    unet = build_unet(shape)
    use_plain_attention(unet)  # the CPU's fused kernel is not counted
    latents, states = torch.randn(3, 4, 8, 8), torch.randn(3, 7, 32)
    with FlopCounterMode(display=False) as counter:
        unet(latents, torch.arange(3), states).sample.sum().backward()
    assert training.operations(shape, 7) == counter.get_total_flops() / 3


def test_this_machine_computes_the_same_step_in_both_layouts() -> None:
    agreement.require(agreement.differences(CPU))


@pytest.mark.parametrize("kernel", ["scaled_dot_product_attention", "conv2d", "group_norm"])
def test_a_device_with_a_wrong_kernel_is_refused(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(functional, kernel)

    def wrong(values: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        return real(values, *others, **options) * (1.0 if values.is_contiguous() else 1.01)

    monkeypatch.setattr(functional, kernel, wrong)
    with pytest.raises(RuntimeError, match="another training step than the CPU"):
        agreement.require(agreement.differences(CPU))


def test_a_run_that_goes_on_otherwise_is_refused() -> None:
    same = dict.fromkeys(("loss", "weight", "loss_undisturbed", "weight_undisturbed"), 0.0)
    resume.require(same)
    assert resume.show(same) == "the same run, bit for bit"
    resume.require(same | {"loss": 0.02, "loss_undisturbed": 0.01})
    with pytest.raises(RuntimeError, match=r"losses differ by 2\.0e-02"):
        resume.require(same | {"loss": 0.02})
