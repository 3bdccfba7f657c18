"""The numbers as they come: written at once, with what is missing and why."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.checks import require_enough
from evaluation.estimate import proportion
from evaluation.results import Results, plain, read_results


def results(folder: Path, is_main: bool = True) -> Results:
    return Results(folder / "new" / "metrics.json", {"model": "a"}, is_main)


def test_each_section_is_written_as_soon_as_it_exists(tmp_path: Path) -> None:
    found = results(tmp_path)
    share = found.measure("shares", "first", lambda: proportion(3, 4))
    assert share == proportion(3, 4) == found.measured["shares: first"]
    stored = read_results(found.path)
    assert stored["shares"]["first"]["value"] == 0.75 and stored["protocol"] == {"model": "a"}
    assert stored["finished"] is False

    def break_down() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.measure("shares", "second", break_down)
    assert read_results(found.path) == stored
    found.finish()
    assert read_results(found.path)["finished"] is True
    assert [path.name for path in found.path.parent.iterdir()] == ["metrics.json"]


def test_too_few_samples_are_named_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results(tmp_path)
    assert found.measure("copying", "", lambda: require_enough(3, 100, "copying")) is None
    assert found.measure("shares", "", lambda: 1) == 1
    stored = read_results(found.path)
    assert "needs at least 100 samples, got 3" in stored["not_measured"]["copying"]
    assert stored["shares"] == 1 and "copying" not in stored
    assert "not measured: copying" in capsys.readouterr().out


def test_what_is_known_to_be_missing_is_not_computed(tmp_path: Path) -> None:
    found = results(tmp_path)
    found.leave_out("distribution: inception", "no file")
    found.leave_out("sweep", "too few")
    assert found.lacks("distribution", "inception") and found.lacks("sweep", "rows")
    assert not found.lacks("distribution", "judge")
    for section, name in (("distribution", "inception"), ("sweep", "")):
        assert found.measure(section, name, lambda: pytest.fail("computed")) is None


def test_an_unexplained_error_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        results(tmp_path).measure("shares", "", lambda: 1 / 0)


def test_a_number_that_is_not_finite_is_left_out_by_name(tmp_path: Path) -> None:
    found = results(tmp_path)
    found.measure("copying", "judge", lambda: {"ratio": float("inf"), "median": 2.0})
    stored = read_results(found.path)
    assert stored["copying"]["judge"] == {"ratio": None, "median": 2.0}
    assert "inf" in stored["not_measured"]["copying: judge, ratio"]


def test_a_helping_process_measures_and_writes_nothing(tmp_path: Path) -> None:
    found = results(tmp_path, is_main=False)
    assert found.measure("shares", "", lambda: pytest.fail("computed")) is None
    found.finish()
    assert not found.path.exists()


def test_values_become_plain_json() -> None:
    values = {"share": proportion(3, 4), "array": np.arange(2), "tensor": torch.ones(1), 3: (1, 2)}
    found = plain(values)
    assert json.loads(json.dumps(found)) == found
    assert found["share"]["n"] == 4 and found["array"] == [0, 1]
    assert found["tensor"] == [1.0] and found["3"] == [1, 2]
    with pytest.raises(TypeError, match="object"):
        plain({"x": object()})


@pytest.mark.parametrize("content", [b"", b'{"protocol": {', bytes(40), b"\xff\xfe", b"[]"])
def test_a_torn_file_is_named_with_its_remedy(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(FileNotFoundError, match=r"run evaluate\.py"):
        read_results(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.json is damaged.*run evaluate\.py again"):
        read_results(path)
