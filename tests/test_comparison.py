"""Two evaluations side by side: pairs of the same captions, and differences that hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluation import report
from evaluation.comparison import compare, difference_lines, pairs
from evaluation.comparison_page import write_comparison_page
from evaluation.features import FeatureNetwork
from evaluation.results import Results, read_results
from evaluation.samples import Samples, read_samples, write_captions, write_numbers

NETWORK = FeatureNetwork("a network", 8, lambda images: images.flatten(1).float())
N = 200
GENERATOR = torch.Generator().manual_seed(0)
REFERENCE, NOISE, OTHER = torch.randn(3, N, 6, generator=GENERATOR)
CAPTIONS = [f"face {number}" for number in range(N)]


def measured(
    folder: Path,
    features: Tensor,
    captions: list[str] = CAPTIONS,
    judge: str = "a judge",
    right: int = 3,
    score: float = 20.0,
    probe: float = 1.0,
) -> Samples:
    """An evaluation of pictures with these features, as it is kept."""
    results = Results(folder / "metrics.json", {"preset": folder.name, "model": "a"})
    comparison = report.compare_sets(NETWORK, REFERENCE, {report.GENERATED: features})
    results.add("distribution", "space", comparison)
    results.add("clip_score", "clip", {"gap": {"value": 1, "low": 0.5, "high": 1.5}})
    results.add("judge", "", {"name": judge})
    for name, values in (("generated", features), ("reference", REFERENCE)):
        kept = {"features": values.contiguous(), "probe": torch.full((2, 6), probe)}
        save_file(kept, folder / f"{name}.safetensors")
    files = {name: f"{name}.safetensors" for name in ("generated", "reference")}
    results.add("features", "space", files)
    numbers: dict[str, Any] = {
        "CLIP score, clip": score + NOISE[:, 0],
        "right": torch.tensor([right, 2] * (N // 2)),
        "said": torch.full((N,), 4),
    }
    write_numbers(folder, numbers)
    write_captions(folder, [folder / f"{i}.png" for i in range(len(features))], captions)
    return read_samples(folder)


def test_pictures_of_one_caption_are_paired_whatever_their_order() -> None:
    first = ["a", "b", "", "b", "c"]
    second = ["b", "d", "", "c", "b", "b"]
    rows = pairs(first, second)
    assert [(first[i], second[k]) for i, k in zip(*rows, strict=True)] == [
        ("b", "b"),
        ("b", "b"),
        ("c", "c"),
    ]
    assert [row.tolist() for row in rows] == [[1, 3, 4], [0, 4, 3]]
    assert [len(row) for row in pairs(["a"], ["b"])] == [0, 0]


def test_a_small_difference_shows_in_pairs_only(tmp_path: Path) -> None:
    first = measured(tmp_path / "first", NOISE + 0.4)
    second = measured(tmp_path / "second", NOISE + 0.45, right=4, score=20.1)
    found = {one.name: one for one in compare(first, second)}
    distance = found["FD (a network)"]
    assert distance.paired and distance.change.low > 0
    assert distance.verdict == "the first is better"
    assert distance.first.high > distance.second.low  # two intervals that overlap
    score = found["CLIP score, clip"]
    assert score.change.value == pytest.approx(0.1, abs=1e-5)
    assert score.verdict == "the second is better"
    shown = found["share of stated attributes shown"]
    assert shown.change.value == pytest.approx(0.125) and shown.verdict == "the second is better"
    assert not found["coverage, in space"].paired
    assert len(difference_lines(list(found.values()))) == len(found) + 1


def test_distances_of_two_networks_are_not_compared(tmp_path: Path) -> None:
    """A judge that was trained again writes the reference's features anew, under the same name."""
    first, second = (
        measured(tmp_path / name, NOISE, probe=probe) for name, probe in (("a", 1.0), ("b", 2.0))
    )
    names = {one.name for one in compare(first, second)}
    assert "CLIP score, clip" in names and not any("FD" in name for name in names)
    (tmp_path / "a" / "reference.safetensors").unlink()
    (tmp_path / "b" / "reference.safetensors").rename(tmp_path / "a" / "reference.safetensors")
    assert first.features("space") is None


def test_the_same_pictures_do_not_differ(tmp_path: Path) -> None:
    sides = [measured(tmp_path / name, NOISE) for name in ("first", "second")]
    found = compare(*sides)
    assert {one.verdict for one in found} == {"no difference that can be told"}
    assert all(one.change.value == 0 for one in found)


def test_another_order_of_the_same_pictures_does_not_differ(tmp_path: Path) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    first = measured(tmp_path / "first", NOISE)
    second = measured(tmp_path / "second", NOISE[order], [CAPTIONS[i] for i in order])
    (distance,) = (one for one in compare(first, second) if one.name == "FD (a network)")
    assert distance.paired and abs(distance.change.value) < 1e-9


def test_other_captions_are_compared_as_independent_sets(tmp_path: Path) -> None:
    first = measured(tmp_path / "first", NOISE)
    second = measured(tmp_path / "second", OTHER + 1, [""] * N)
    found = {one.name: one for one in compare(first, second)}
    assert not any(one.paired for one in found.values())
    assert found["FD (a network)"].verdict == "the first is better"
    assert found["coverage, in space"].verdict == "the first is better"
    assert not any("CLIP" in name or "stated" in name for name in found)


def test_what_two_judges_or_two_references_said_is_not_compared(tmp_path: Path) -> None:
    first = measured(tmp_path / "first", NOISE)
    second = measured(tmp_path / "second", NOISE, judge="another judge")
    assert not any("stated" in one.name for one in compare(first, second))
    kept = {"features": OTHER.contiguous(), "probe": torch.ones(2, 6)}
    save_file(kept, tmp_path / "second" / "reference.safetensors")
    assert [one.name for one in compare(first, second)] == ["CLIP score, clip"]


def test_the_page_tells_the_changes_and_both_protocols(tmp_path: Path) -> None:
    sides = {
        name: measured(tmp_path / name, NOISE + shift) for name, shift in (("old", 0.9), ("new", 0))
    }
    write_comparison_page(tmp_path / "report.html", sides, compare(*sides.values()), None)
    text = (tmp_path / "report.html").read_text()
    assert "new - old" in text and "new is better" in text and "FD (a network)" in text


def test_an_evaluation_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run evaluate\.py"):
        read_samples(tmp_path)
    samples = measured(tmp_path / "first", NOISE)
    assert read_results(tmp_path / "first" / "metrics.json") == samples.metrics
    (tmp_path / "first" / "captions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"captions\.csv"):
        read_samples(tmp_path / "first")
    assert np.isfinite(samples.numbers["right"].numpy()).all()
