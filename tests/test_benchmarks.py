"""What the benchmarks rest on; their timings are never asserted."""

import json
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
