"""Kept hidden states are those that the text encoder gives, whatever was asked before."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from models.device import autocast
from models.text_encoder import TextEncoder
from training.batches import Batch
from training.caption_states import EncodedCaptions, KeptCaptions, file_name

CAPTIONS = [f"a {age} {noun} with {hair} hair" for age in ("young", "older") for noun in
            ("man", "woman") for hair in ("black", "brown", "gray", "blond", "wavy")]  # fmt: skip
PRECISIONS = ("no", "bf16")


@pytest.fixture
def text_encoder(clip_folder: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(str(clip_folder))


def batch_of(rows: list[int], captions: list[str] = CAPTIONS) -> Batch:
    texts = tuple(captions[row] for row in rows)
    return Batch(0, np.array(rows), texts, np.array(rows), torch.zeros(len(rows), 2), (0, 1, 1))


def kept_in(
    folder: Path, text_encoder: TextEncoder, precision: str = "no", rows: int = 20
) -> KeptCaptions:
    return KeptCaptions(text_encoder, precision, folder / "states.bin", rows)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_states_are_the_text_encoders_own(
    text_encoder: TextEncoder, precision: str, tmp_path: Path
) -> None:
    kept = kept_in(tmp_path, text_encoder, precision)
    with autocast(precision, torch.device("cpu")):
        want = text_encoder(CAPTIONS)
    tolerance = {"no": 1e-6, "bf16": 0.02}[precision]
    for _ in range(2):  # made, then read back
        got = kept(batch_of(list(range(20)))).float()
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rows", [0, 3, 20])
def test_a_captions_states_do_not_depend_on_what_was_asked_before(
    text_encoder: TextEncoder, precision: str, rows: int, tmp_path: Path
) -> None:
    fresh = kept_in(tmp_path / "a", text_encoder, precision)(batch_of(list(range(20))))
    kept = kept_in(tmp_path / "b", text_encoder, precision, rows)
    order = [3, 3, 0, 19, 7, 3, 11]
    for chosen in ([5], order, list(range(20)), order[::-1]):
        assert torch.equal(kept(batch_of(chosen)), fresh[chosen])


def counting(text_encoder: TextEncoder) -> list[str]:
    asked: list[str] = []
    plain = text_encoder.forward
    text_encoder.forward = lambda captions: asked.extend(captions) or plain(captions)
    return asked


def test_each_caption_is_encoded_once_by_all_processes_and_runs(
    text_encoder: TextEncoder, tmp_path: Path
) -> None:
    asked = counting(text_encoder)
    first, second = kept_in(tmp_path, text_encoder), kept_in(tmp_path, text_encoder)
    for kept in (first, second, first, kept_in(tmp_path, text_encoder)):
        kept(batch_of([0, 5, 1, 5, 0]))
    assert [asked.count(CAPTIONS[row]) for row in (0, 1, 5)] == [1, 1, 1]


def test_rows_that_are_not_whole_or_of_another_caption_are_encoded_again(
    text_encoder: TextEncoder, tmp_path: Path
) -> None:
    kept = kept_in(tmp_path, text_encoder)
    want = kept(batch_of([0, 1, 2]))
    values = bytearray((tmp_path / "states.bin").read_bytes())
    values[kept.size + 10] ^= 1  # in the second row
    (tmp_path / "states.bin").write_bytes(values[:-7])  # and the third one torn
    again = kept_in(tmp_path, text_encoder)
    assert torch.equal(again(batch_of([0, 1, 2])), want)
    other = [CAPTIONS[9], *CAPTIONS[1:]]  # as if the grammar of captions had changed
    got = again(batch_of([0], other))
    assert torch.equal(got, kept_in(tmp_path / "new", text_encoder)(batch_of([9])))


def test_too_long_a_caption_is_refused(text_encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Shorten it"):
        kept_in(tmp_path, text_encoder)(batch_of([0], ["a man with a beard " * 30]))


def test_a_full_disk_only_ends_the_keeping(
    text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = batch_of(list(range(20)))
    want = kept_in(tmp_path / "a", text_encoder)(everything)
    kept = kept_in(tmp_path / "b", text_encoder)

    class Full:
        def __init__(self, file: object) -> None:
            self.file, self.left = file, 3

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, values: bytes) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(values)

    kept.file = Full(kept.file)
    for _ in range(2):
        assert torch.equal(kept(everything), want)
    assert kept.capacity == 0


def test_a_device_that_encodes_by_itself_gives_the_same(
    text_encoder: TextEncoder, tmp_path: Path
) -> None:
    tokens = text_encoder.tokenize(CAPTIONS[:4])
    batch = batch_of([0, 1, 2, 3])
    packed = torch.cat([torch.zeros(4, 2), tokens.float()], dim=1)
    batch = Batch(0, batch.positions, batch.captions, batch.caption_rows, packed, (0, 1, 1))
    assert torch.equal(batch.tokens, tokens)
    want = kept_in(tmp_path, text_encoder)(batch_of([0, 1, 2, 3]))
    got = EncodedCaptions(text_encoder, "no")(batch)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_states_of_another_encoder_or_precision_lie_in_another_file() -> None:
    names = {file_name(key, p, n) for key in ("a", "b") for p in ("no", "bf16") for n in (5, 6)}
    assert len(names) == 8
