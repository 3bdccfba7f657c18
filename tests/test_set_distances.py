"""All distances of a set at once: their names, their values, and what they see."""

import pytest
import torch

from evaluation.distribution import KernelDistance, frechet_distance
from evaluation.features import INCEPTION, FeatureNetwork
from evaluation.manifold import overlap
from evaluation.set_distances import kernel_name, set_distances
from evaluation.sliced_wasserstein import MindReference

NETWORK = FeatureNetwork("a network", 8, lambda images: images.flatten(1).float())


def normal(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)) + shift


def test_every_number_is_that_of_its_own_function() -> None:
    pictures, reference = normal(150, 0, 0.3), normal(200, 1)
    found = set_distances(NETWORK, pictures, reference)
    assert found["FD (a network)"].value == frechet_distance(pictures, reference)
    assert found["sliced Wasserstein (a network)"].value == MindReference(reference).distance(
        pictures
    )
    assert found["coverage"].value == overlap(reference, pictures).coverage
    assert isinstance(found["KD (a network)"], KernelDistance)
    for name, estimate in found.items():
        if name != "KD (a network)":
            assert estimate.low <= estimate.value <= estimate.high and estimate.low >= 0
            assert estimate.high <= 1 or name not in ("precision", "recall", "coverage")
            assert estimate.n == 150


def test_worse_pictures_are_worse_in_every_number() -> None:
    reference = normal(300, 1)
    good, bad = (set_distances(NETWORK, normal(200, 0, shift), reference) for shift in (0, 1.5))
    for name in ("FD (a network)", "sliced Wasserstein (a network)"):
        assert good[name].high < bad[name].low
    for name in ("precision", "coverage", "clipped_density", "clipped_coverage"):
        assert good[name].low > bad[name].high


def test_only_fids_network_gives_the_papers_names_and_only_clip_cmmd() -> None:
    unit = torch.nn.functional.normalize(normal(60, 0, 1.0))
    inception = FeatureNetwork(INCEPTION, 299, NETWORK.extract)
    assert {"FID", "MIND", "KID"} < set(set_distances(inception, unit, unit))
    clip = set_distances(FeatureNetwork("CLIP b", 8, NETWORK.extract), unit, unit)
    assert clip["CMMD"].value == pytest.approx(0, abs=1e-9) and clip["CMMD"].high > 0
    assert kernel_name(NETWORK) == "KD (a network)" and kernel_name(inception) == "KID"
    assert "CMMD" not in set_distances(NETWORK, unit, unit)
