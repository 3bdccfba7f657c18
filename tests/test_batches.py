"""The order of the faces and the randomness of a step, which depend on its number alone."""

import numpy as np
import pytest
import torch
from conftest import Opening, caption
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion import determinism
from training.batches import Batches


@given(count=st.integers(1, 200), batch=st.integers(1, 16), processes=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_face_at_most_once(count: int, batch: int, processes: int) -> None:
    """Whatever the number of processes, which share each batch and change from epoch to epoch."""

    def epoch(number: int, processes: int) -> list[int]:
        shares = [determinism.share_of(batch, p, processes) for p in range(processes)]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        faces = [
            determinism.faces_at(step, count, batch, 0)[np.array(share, int)]
            for step in range(number * (count // batch), (number + 1) * (count // batch))
            for share in shares
        ]
        return [int(i) for f in faces for i in f]

    assume(count >= batch)
    first, second = epoch(0, processes), epoch(1, 1)
    assert len(set(first)) == len(first) == count // batch * batch
    assert set(first) <= set(range(count))
    determinism.epoch_order.cache_clear()  # as after a restart
    assert epoch(1, processes) == second and epoch(0, 1) == first
    assert len(first) < 12 or first != second != sorted(second)


def test_every_sample_of_every_step_has_its_own_generator() -> None:
    def numbers(seed: int, step: int, place: int) -> tuple[float, ...]:
        return tuple(determinism.sample_generator(seed, step, place).standard_normal(4))

    keys = [(s, n, p) for s in (0, 1, 11) for n in (0, 1, 11, 12) for p in (0, 1, 2)]
    drawn = {numbers(*key) for key in keys}
    assert len(drawn) == len(keys)
    assert numbers(0, 1, 2) == numbers(0, 1, 2)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shares_of_processes_are_the_batch(opening: Opening, processes: int) -> None:
    """Noise, timesteps, captions and mirroring too: a sample does not know who computes it."""
    opened = opening()
    whole = opened.batches[4]
    shares = [
        Batches(
            opened.latents, caption, opened.text_encoder.tokenize, opened.objective,
            opened.config.data, opened.config.training, number, processes,
        )[4]
        for number in range(processes)
    ]  # fmt: skip
    for parts, want in zip(zip(*shares, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(parts), want)


def test_a_batch_holds_the_tokens_of_its_captions(opening: Opening) -> None:
    """Those of the wording of its epoch, or of the empty caption."""
    opened, dropped = opening(cfg_dropout_prob=0.3), 0
    tokenize = opened.text_encoder.tokenize
    for step in range(8):
        batch = opened.batches[step]
        for face, tokens in zip(opened.batches.faces(step), batch.tokens, strict=True):
            empty, own = tokenize(["", caption(face, step // 3)])
            assert torch.equal(tokens, own) or torch.equal(tokens, empty)
            dropped += torch.equal(tokens, empty)
    assert 0.1 < dropped / (8 * 8) < 0.5


@pytest.mark.parametrize("threads", [1, 3])
def test_a_batch_is_a_function_of_its_number(opening: Opening, threads: int) -> None:
    batches = opening().batches
    wanted = [batches[step] for step in range(5)]
    ahead = list(opening().batches.ahead(1, 5, threads))
    assert len(ahead) == 4
    for batch, want in zip(ahead, wanted[1:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch, want, strict=True))
