"""What the benchmarks rest on; their timings are never asserted."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from benchmarks import measure
from config import celeba_hq
from custom_datasets.captions import describe


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
