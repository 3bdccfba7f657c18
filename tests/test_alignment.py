"""CLIP scores: equal to the public ones, and wrong captions fall to the control."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_clip import random_images, with_image_preparation
from torch import Tensor
from torchmetrics.functional.multimodal.clip_score import _clip_score_update
from transformers import CLIPModel, CLIPProcessor

from evaluation.alignment import (
    alignment_report,
    clip_scores,
    shuffled_control,
    table_lines,
    text_features,
)
from evaluation.checks import TooFewSamples
from evaluation.features import clip_image_features, extract_features, open_clip


@pytest.fixture(scope="module")
def tiny_clip(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_image_preparation(clip_folder, tmp_path_factory.mktemp("tiny_clip"))


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1)


def pairs(n: int, agreement: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Image and text features (n, 64) whose partners share a direction."""
    generator = torch.Generator().manual_seed(seed)
    common, image, text = torch.randn(3, n, 64, generator=generator)
    return unit(agreement * common + image), unit(agreement * common + text)


def test_scores_are_100_times_the_cosine_and_never_negative() -> None:
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    text = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([100, 0, 60])


def test_scores_equal_torchmetrics_with_a_real_clip(tiny_clip: Path) -> None:
    images, captions = random_images(4, 40), ["a man", "a young woman", "she smiles", "a hat"]
    clip = open_clip(str(tiny_clip))
    image = extract_features(clip_image_features(clip), images)
    own = clip_scores(image, text_features(clip, captions))
    _answer_with_tensors(clip.model)
    processor = CLIPProcessor.from_pretrained(tiny_clip)
    scores, count = _clip_score_update(list(images), captions, clip.model, processor)
    assert count == 4 and scores.abs().max() > 1
    assert own.tolist() == pytest.approx(scores.clamp(min=0).tolist(), abs=2e-3)


def _answer_with_tensors(model: CLIPModel) -> None:
    """Torchmetrics 1.9 takes the answers of transformers 4; those of 5 are records."""
    for name in ("get_image_features", "get_text_features"):
        answer = getattr(model, name)

        def tensor(*args: Tensor, answer: Callable = answer) -> Tensor:
            given = answer(*args)
            return given if isinstance(given, Tensor) else given.pooler_output

        setattr(model, name, tensor)


def test_text_features_are_the_models_own_whatever_the_batch(tiny_clip: Path) -> None:
    clip = open_clip(str(tiny_clip))
    captions = ["a man", "a young woman with wavy hair", "a hat"]
    whole, single = text_features(clip, captions), text_features(clip, captions, batch_size=1)
    assert torch.allclose(whole, single, atol=1e-6)
    tokens = clip.tokenizer(captions, padding=True, return_tensors="pt")
    pixels = torch.zeros(3, 3, clip.crop, clip.crop)
    expected = clip.model(**tokens, pixel_values=pixels).text_embeds
    assert torch.allclose(whole, expected, atol=1e-6)


def test_a_caption_that_is_too_long_is_refused(tiny_clip: Path) -> None:
    with pytest.raises(ValueError, match="77 tokens, shorten it: 'a a a"):
        text_features(str(tiny_clip), ["a man", "a " * 90])
    with pytest.raises(ValueError, match="list of captions"):
        text_features(str(tiny_clip), "a man")


def test_images_are_aligned_by_their_features(tiny_clip: Path) -> None:
    clip = open_clip(str(tiny_clip))
    captions = [f"a man {'with a hat ' * number}" for number in range(12)]
    images, real = random_images(12, 40), random_images(12, 40, seed=1)
    network, words = clip_image_features(clip), text_features(clip, captions)
    seen, truth = extract_features(network, images), extract_features(network, real)
    want = alignment_report(seen, words, truth)
    assert alignment_report(seen, words).real is None
    matched, *_, last = table_lines("tiny", want)
    assert f"{want.matched.value:.2f}" in matched and "n = 12" in matched
    assert "real_shuffled" in last
    assert len(table_lines("tiny", alignment_report(words, words))) == 2


def test_wrong_captions_fall_to_the_control() -> None:
    images, texts = pairs(200, agreement=1.5)
    right = alignment_report(images, texts, real=unit(images + 2 * texts))
    wrong = alignment_report(images, texts.roll(1, 0))
    assert right.real.value > right.matched.value > right.shuffled.value + 20
    assert right.gap.low > 20 and right.matched.low > right.shuffled.high
    assert right.real_shuffled.value < 15
    assert right.shortfall.value == pytest.approx(right.real.value - right.matched.value)
    assert right.shortfall.low > 0 and right.shortfall.n == 200
    assert wrong.gap.low < 0 < wrong.gap.high
    assert wrong.matched.value == pytest.approx(right.shuffled.value, abs=2)
    assert wrong.real is None and wrong.real_shuffled is None and wrong.shortfall is None


def test_several_pictures_of_one_face_are_no_more_faces() -> None:
    images, texts = pairs(40, agreement=1.0)
    faces = np.repeat(np.arange(40), 5)
    once = alignment_report(images, texts).matched
    five = alignment_report(images[faces], texts[faces], faces=faces)
    assert (five.matched.low, five.matched.high) == pytest.approx((once.low, once.high))
    assert five.matched.n == 40 and five.shuffled.value < once.value - 5


def test_the_control_never_pairs_an_image_with_its_own_caption() -> None:
    own = torch.eye(30)
    for seed in range(20):
        assert shuffled_control(own, own, seed).max() == 0
    assert clip_scores(own, own).min() == pytest.approx(100)


def test_mistakes_are_refused() -> None:
    images, texts = pairs(20, 1.0)
    with pytest.raises(ValueError, match="20 images with 19 captions"):
        clip_scores(images, texts[1:])
    with pytest.raises(TooFewSamples, match="at least 10 samples, got 9"):
        alignment_report(images[:9], texts[:9])
