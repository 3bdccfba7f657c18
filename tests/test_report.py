"""Sets side by side, at which n, and sets that are refused."""

import pytest
import torch

from evaluation import report
from evaluation.checks import TooFewSamples
from evaluation.distribution import frechet_distance
from evaluation.features import FeatureNetwork

NETWORK = FeatureNetwork("a network", 8, lambda images: images.flatten(1).float())


def normal(count: int, shift: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 16, generator=generator) + shift


def test_sets_are_compared_at_one_size_and_come_out_in_order() -> None:
    sets = {"floor": normal(300, 0, 1), "model": normal(500, 0.3, 2), "bad": normal(200, 2, 3)}
    result = report.compare_sets(NETWORK, normal(400), sets)
    assert (result["n"], result["n_reference"], result["dimensions"]) == (200, 400, 16)
    assert result["note"] == "" and result["extrapolated"] is None
    distances = [result["sets"][name]["FD (a network)"] for name in sets]
    assert [d.n for d in distances] == [200] * 3
    values = [d.value for d in distances]
    assert values == sorted(values)
    assert values[0] == frechet_distance(sets["floor"][:200], normal(400))
    kernels = [result["sets"][name]["KD (a network)"].mean for name in sets]
    assert kernels == sorted(kernels)


def test_a_control_is_compared_at_its_own_size() -> None:
    sets = {report.FLOOR: normal(150, 0, 1), report.GENERATED: normal(150, 0.3, 2)}
    apart = {report.UNTRAINED: normal(60, 3, 3)}
    result = report.compare_sets(NETWORK, normal(200), sets, apart)
    assert result["n"] == 150
    control = result["sets"][report.UNTRAINED]["FD (a network)"]
    assert control.n == 60
    assert control.value == frechet_distance(apart[report.UNTRAINED], normal(200))


def test_all_pictures_count_where_they_are_more_than_the_faces_beside_them() -> None:
    sets = {report.FLOOR: normal(100, 0, 1), report.GENERATED: normal(300, 0.3, 2)}
    result = report.compare_sets(NETWORK, normal(200), sets)
    row = result["sets"]["generated, all 300"]
    assert set(row) == {"FD (a network)", "KD (a network)"}
    assert row["FD (a network)"].value == frechet_distance(sets[report.GENERATED], normal(200))
    assert result["sets"][report.GENERATED]["FD (a network)"].n == 100
    assert result["extrapolated"].n == 300
    lines = report.distribution_lines(result)
    assert any("infinitely many" in line for line in lines)
    assert any(line.startswith("precision") and line.rstrip().endswith("-") for line in lines)


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
