"""Sets side by side, the intervals of their distances, and the file of results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import report
from evaluation.checks import TooFewSamples
from evaluation.distribution import frechet_distance
from evaluation.estimate import proportion
from evaluation.features import FeatureNetwork

NETWORK = FeatureNetwork("a network", 8, lambda images: images.flatten(1).float())


def normal(count: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=generator) + shift


def test_sets_are_compared_at_one_size_and_come_out_in_order() -> None:
    sets = {"floor": normal(300, 0, 1), "model": normal(500, 0.3, 2), "bad": normal(200, 2, 3)}
    result = report.compare_sets(NETWORK, normal(400), sets)
    assert (result["n"], result["n_reference"], result["dimensions"]) == (200, 400, 16)
    assert result["note"] == ""
    distances = [result["sets"][name]["FD (a network)"] for name in sets]
    assert [d.n for d in distances] == [200] * 3
    values = [d.value for d in distances]
    assert values == sorted(values)
    assert values[0] == frechet_distance(sets["floor"][:200], normal(400))
    kernels = [result["sets"][name]["KD (a network)"].mean for name in sets]
    assert kernels == sorted(kernels)
    assert len(report.distribution_lines(result)) == 4


def test_images_are_compared_by_their_features_and_those_of_the_reference_kept(
    tmp_path: Path,
) -> None:
    asked = []

    def extract(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return images.flatten(1).float()

    network = FeatureNetwork("a network", 4, extract)
    reference, some = torch.randint(256, (2, 60, 3, 4, 4), dtype=torch.uint8)
    compared = [
        report.compare_images(network, reference, "key", {"some": some}, tmp_path) for _ in range(2)
    ]
    features = (images.flatten(1).float() for images in (reference, some))
    want = report.compare_sets(network, next(features), {"some": next(features)})
    assert compared == [want, want]
    assert asked.count(60) == 3  # the reference once, the set twice; the others are probes


def test_too_few_are_refused_and_few_are_said_to_be_few() -> None:
    with pytest.raises(TooFewSamples, match="needs at least 50"):
        report.compare_sets(NETWORK, normal(400), {"few": normal(49)})
    wide = torch.randn(60, 80)
    assert "60 is below the 80" in report.compare_sets(NETWORK, wide, {"wide": wide})["note"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 3, 8, 8), "uint8"),
        (torch.randint(256, (4, 8, 8, 3), dtype=torch.uint8), "channels-last"),
        (torch.randint(256, (4, 3, 9, 9), dtype=torch.uint8), "one size"),
        (torch.randint(2, (4, 3, 8, 8), dtype=torch.uint8), "float range"),
    ],
)
def test_sets_that_could_only_be_scored_wrongly_are_refused(
    images: torch.Tensor, message: str
) -> None:
    reference = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises((TypeError, ValueError), match=message):
        report.check_set(images, reference, "generated")


def test_swapped_channels_are_refused() -> None:
    reference = torch.randint(60, (4, 3, 8, 8), dtype=torch.uint8)
    reference[:, 0] += 100
    report.check_set(reference, reference, "generated")
    with pytest.raises(ValueError, match="BGR"):
        report.check_set(reference.flip(1), reference, "generated")


def test_pictures_become_bytes_as_png_rounds_them() -> None:
    images = torch.tensor([0.0, 1.0, 0.5, 1 / 255, 0.999, 1.2])
    assert report.as_uint8(images).tolist() == [0, 255, 128, 1, 255, 255]


def test_results_are_plain_json_and_never_half_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.json"
    values = {"share": proportion(3, 4), "array": np.arange(2), "tensor": torch.ones(1)}
    report.write_metrics(path, values)
    found = json.loads(path.read_text())
    assert found["share"]["value"] == 0.75 and found["share"]["n"] == 4
    assert found["array"] == [0, 1] and found["tensor"] == [1.0]
    for broken in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((TypeError, ValueError)):
            report.write_metrics(path, broken)
    assert json.loads(path.read_text()) == found and list(path.parent.iterdir()) == [path]
