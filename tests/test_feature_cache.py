"""Features of whole sets: extracted in parts, kept, and extracted again where needed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation import feature_cache
from evaluation.feature_cache import PART, cached_features, extract_shared, stored_at
from evaluation.features import FeatureNetwork, extract_features


class Images(list[Tensor]):
    """A set in memory that remembers how many images were read together."""

    def __init__(self, count: int, key: object = "a") -> None:
        generator = torch.Generator().manual_seed(count)
        super().__init__(
            torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
        )
        self.key, self.reads = key, 0

    def __getitem__(self, place: int) -> Tensor:
        self.reads += 1
        return super().__getitem__(place)


def linear(seed: int) -> FeatureNetwork:
    torch.manual_seed(seed)
    layer = nn.Linear(48, 5)
    return FeatureNetwork("linear", 4, lambda images: layer(images[..., :4, :4].flatten(1) / 255))


def test_a_set_has_the_features_of_its_images() -> None:
    images = Images(PART + 7)
    found = extract_shared(linear(0), images)
    assert torch.equal(found, extract_features(linear(0), torch.stack(list(images))))


def test_a_part_of_a_set_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def read(images: Images, places: range, workers: int) -> Tensor:
        held.append(len(places))
        return torch.stack([images[place] for place in places])

    monkeypatch.setattr(feature_cache, "read", read)
    assert len(extract_shared(linear(0), Images(3 * PART + 7))) == 3 * PART + 7
    assert held == [PART, PART, PART, 7]


def test_stored_features_are_used_until_images_or_weights_change(tmp_path: Path) -> None:
    images = Images(6)

    def get(network: FeatureNetwork, images: Images) -> Tensor:
        images.reads = 0
        return cached_features(network, images, tmp_path / "features")

    first = get(linear(0), images)
    assert images.reads == 6
    assert torch.equal(get(linear(0), images), first) and images.reads == 0
    other = Images(6, "b")
    assert get(linear(0), other) is not None and other.reads == 6  # other images
    retrained = get(linear(1), images)
    assert images.reads == 6 and not torch.allclose(retrained, first)  # other weights
    assert torch.equal(get(linear(1), images), retrained) and images.reads == 0


def test_a_damaged_file_is_extracted_again_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Images(6)
    first = cached_features(linear(0), images, tmp_path)
    path = stored_at(linear(0), images, tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(cached_features(linear(0), images, tmp_path), first)
    assert path.name in capsys.readouterr().out
    images.reads = 0
    assert torch.equal(cached_features(linear(0), images, tmp_path), first) and images.reads == 0


def test_an_interrupted_extraction_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(images: Tensor) -> Tensor:
        if len(images) > 2:  # the probe passes
            raise KeyboardInterrupt
        return images.float().mean((2, 3))

    with pytest.raises(KeyboardInterrupt):
        cached_features(FeatureNetwork("broken", 4, interrupted), Images(6), tmp_path)
    assert not list(tmp_path.iterdir())
