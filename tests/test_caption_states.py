"""Kept hidden states are those that the text encoder gives, whatever was asked before."""

import errno
import os
from pathlib import Path

import pytest
import torch

from models.device import autocast
from models.text_encoder import TextEncoder
from training.caption_states import CaptionStates

CAPTIONS = [f"a {age} {noun} with {hair} hair" for age in ("young", "older") for noun in
            ("man", "woman") for hair in ("black", "brown", "gray", "blond", "wavy")]  # fmt: skip
PRECISIONS = ("no", "bf16")


@pytest.fixture
def text_encoder(clip_folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(str(clip_folder))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_states_are_the_text_encoders_own(
    text_encoder: TextEncoder, precision: str, tmp_path: Path
) -> None:
    kept = CaptionStates(text_encoder, precision, 100, tmp_path)
    with autocast(precision, torch.device("cpu")):
        want = text_encoder(CAPTIONS)
    tolerance = {"no": 1e-6, "bf16": 0.02}[precision]
    for _ in range(2):  # made, then read back
        torch.testing.assert_close(kept(CAPTIONS).float(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("capacity", [0, 3, 100])
def test_a_captions_states_do_not_depend_on_what_was_asked_before(
    text_encoder: TextEncoder, precision: str, capacity: int, tmp_path: Path
) -> None:
    fresh = CaptionStates(text_encoder, precision, 100, tmp_path)(CAPTIONS)
    kept = CaptionStates(text_encoder, precision, capacity, tmp_path)
    order = [3, 3, 0, 19, 7, 3, 11]
    for chosen in ([5], order, list(range(20)), order[::-1]):
        assert torch.equal(kept([CAPTIONS[i] for i in chosen]), fresh[chosen])


def test_each_caption_is_encoded_once(text_encoder: TextEncoder, tmp_path: Path) -> None:
    asked: list[str] = []
    plain = text_encoder.forward
    text_encoder.forward = lambda captions: asked.extend(captions) or plain(captions)
    kept = CaptionStates(text_encoder, "no", 100, tmp_path)
    for _ in range(3):
        kept([CAPTIONS[0], "", CAPTIONS[1], "", CAPTIONS[0]])
    assert [asked.count(caption) for caption in CAPTIONS[:2]] == [1, 1]


def test_nothing_is_left_in_the_folder(text_encoder: TextEncoder, tmp_path: Path) -> None:
    CaptionStates(text_encoder, "no", 100, tmp_path)(CAPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_too_long_a_caption_is_refused(text_encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Shorten it"):
        CaptionStates(text_encoder, "no", 100, tmp_path)(["a man with a beard " * 30])


@pytest.mark.parametrize("answer", ["short", "full"])
def test_a_full_disk_only_ends_the_keeping(
    text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    want = CaptionStates(text_encoder, "no", 100, tmp_path)(CAPTIONS)
    kept, write, left = CaptionStates(text_encoder, "no", 100, tmp_path), os.pwrite, [3]

    def pwrite(file: int, values: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0 and answer == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, values if left[0] >= 0 else values[:10], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for _ in range(2):
        assert torch.equal(kept(CAPTIONS), want)
    assert len(kept.rows) == 3
