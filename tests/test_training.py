"""The training loop: what reaches the model, the average, the schedule, and what it reports."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Latents, Opening, caption
from hypothesis import given, settings
from hypothesis import strategies as st

from config import TrainingConfig
from diffusion.objective import Objective
from training import loop, run_folder
from training.loop import learning_rate_at
from training.tracking import TIMESTEP_BINS


@pytest.fixture
def spied_losses(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What every step hands to the objective, and the losses that it gets back."""
    calls = []
    real = Objective.loss

    def spy(self: Objective, denoiser: Callable, *tensors: torch.Tensor) -> torch.Tensor:
        losses = real(self, denoiser, *tensors)
        names = ("latents", "text", "timesteps", "noise")
        calls.append(dict(zip(names, tensors, strict=True)) | {"losses": losses.detach()})
        return losses

    monkeypatch.setattr(Objective, "loss", spy)
    return calls


def test_the_average_is_its_recursion(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    decay = 0.5  # which bounds the weight from the third step on
    monkeypatch.setattr(loop, "EMA_DECAY", decay)
    arguments = opening(learning_rate=1e-2)
    state, want = arguments.state, {}
    for step in loop.train(arguments):
        live = {n: v.detach().clone() for n, v in state.unet.state_dict().items()}
        n = step.number - 1
        weight = 1.0 if n == 0 else max((1 + n) ** -0.75, 1 - decay)
        want = {k: want.get(k, v) * (1 - weight) + v * weight for k, v in live.items()}
        # Each yielded step is complete: counted, averaged and logged.
        assert state.step == step.number == int(state.updates)
        assert len(run_folder.read_losses(arguments.folder)) == step.number
        for name, value in state.ema_unet.state_dict().items():
            torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-6)
    assert step.number == 6
    name = "conv_in.weight"
    assert (state.ema_unet.state_dict()[name] - live[name]).abs().max() > 1e-4
    assert not any(p.requires_grad for p in state.ema_unet.parameters())
    assert not state.ema_unet.training


# --- learning rate ---


@given(warmup=st.integers(0, 50), total=st.integers(60, 500), peak=st.floats(1e-6, 1e-1))
@settings(max_examples=40, deadline=None)
def test_the_shape_of_the_learning_rate(warmup: int, total: int, peak: float) -> None:
    constant = TrainingConfig(learning_rate=peak, warmup_steps=warmup, lr_decay="constant")
    cosine = dataclasses.replace(constant, lr_decay="cosine")
    for step in range(total + 1):
        rate = peak * min(1, (step + 1) / (warmup + 1))
        falling = rate * (1 + math.cos(math.pi * step / total)) / 2
        assert learning_rate_at(step, total, constant) == pytest.approx(rate, rel=1e-9)
        assert learning_rate_at(step, total, cosine) == pytest.approx(falling, rel=1e-9, abs=1e-15)


def test_the_optimiser_runs_at_the_rate_of_its_step(opening: Opening) -> None:
    arguments = opening(lr_decay="cosine", learning_rate=3e-3)
    for step in loop.train(arguments):
        (group,) = arguments.state.optimizer.param_groups
        want = learning_rate_at(step.number - 1, 6, arguments.config.training)
        assert group["lr"] == step.learning_rate == want
        assert group["weight_decay"] == 0.01


# --- what reaches the model ---


def test_latents_are_fresh_samples_of_the_posterior(
    opening: Opening, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    latents = Latents(count=8, std=0.5)
    list(loop.train(opening(latents, num_epochs=6, flip=False)))
    draws = []
    for (positions, _), call in zip(latents.asked, spied_losses, strict=True):
        z = (call["latents"] - latents.mean[positions]) / 0.5
        assert z.std().item() == pytest.approx(1, abs=0.1) and abs(z.mean().item()) < 0.1
        noise = call["noise"]
        assert noise.std().item() == pytest.approx(1, abs=0.1)
        assert abs(torch.corrcoef(torch.stack([z.flatten(), noise.flatten()]))[0, 1]) < 0.1
        draws.append(z[np.argsort(positions)])
    # The same eight faces at every step, and every time another sample of them.
    assert all((a - b).abs().mean() > 0.5 for a, b in itertools.pairwise(draws))
    times = torch.cat([call["timesteps"] for call in spied_losses])
    assert times.min() >= 0 and times.max() <= 999
    assert len(set(times.tolist())) > 40 and 350 < times.float().mean() < 650


def test_the_loss_reported_is_the_unweighted_mean(
    opening: Opening, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    opened = opening(snr_gamma=0.01)
    for step, call in zip(loop.train(opened), spied_losses, strict=False):
        assert step.loss == pytest.approx(call["losses"].mean().item(), rel=1e-6)
        bins = call["timesteps"] * TIMESTEP_BINS // 1000
        for number, value in enumerate(step.loss_by_timestep):
            inside = call["losses"][bins == number]
            want = pytest.approx(inside.mean().item(), rel=1e-5) if len(inside) else None
            assert value == want
    assert len(spied_losses) == 6


def test_the_denoiser_sees_the_captions_of_its_faces(
    opening: Opening, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    arguments = opening(cfg_dropout_prob=0.0)
    epochs = [step.epoch for step in loop.train(arguments)]
    assert epochs == [0, 0, 1, 1, 1, 2]
    for number, (positions, _) in enumerate(arguments.latents.asked):
        want = arguments.text_encoder([caption(p, number // 3) for p in positions])
        torch.testing.assert_close(spied_losses[number]["text"], want, rtol=0, atol=1e-5)


def test_samples_of_weight_zero_give_no_gradient(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "weight", lambda self, timesteps: timesteps * 0.0)
    opened = opening()
    next(loop.train(opened))
    assert all(not weight.grad.any() for weight in opened.state.weights)


@pytest.mark.parametrize("flip", [True, False])
def test_mirrored_faces_are_asked_for(opening: Opening, flip: bool) -> None:
    arguments = opening(num_epochs=4, flip=flip, checkpoint_every_n_epochs=4)
    list(loop.train(arguments))
    flipped = [f for _, batch in arguments.latents.asked for f in batch]
    share = np.mean(flipped)
    assert (0.3 < share < 0.7) if flip else share == 0
    assert not flip or len({tuple(batch) for _, batch in arguments.latents.asked}) > 6


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_unet_computes_in_the_asked_precision_at_every_step(
    opening: Opening, precision: str
) -> None:
    arguments = opening(mixed_precision=precision)
    seen: list[torch.dtype] = []
    unet = arguments.state.unet
    unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    list(loop.train(arguments))
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32] * 6
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


def test_it_overfits_eight_faces(opening: Opening) -> None:
    changes = {"num_epochs": 100, "checkpoint_every_n_epochs": 100, "learning_rate": 3e-3}
    arguments = opening(Latents(8, 0.0), flip=False, **changes)
    losses = [step.loss for step in loop.train(arguments)]
    # Latents of white noise cannot be guessed, only remembered: without memory the loss stays at 1.
    assert len(losses) == 100 and np.mean(losses[:5]) > 0.95
    assert np.mean(losses[-40:]) < 0.85  # .78 with three seeds


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_batches_that_are_not_finite_are_skipped_up_to_a_bound(
    opening: Opening, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the six steps blow up; what they would have done never reaches weights or average."""
    real, calls = Objective.loss, []

    def loss(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) in (2, 5) else 1.0)

    monkeypatch.setattr(Objective, "loss", loss)
    arguments = opening(skip_not_finite=allowed)
    folder, steps = arguments.folder, []
    if allowed < 2:
        with pytest.raises(FloatingPointError, match=r"not_finite\.jsonl"):
            steps.extend(loop.train(arguments))
    else:
        steps = list(loop.train(arguments))
        assert [step.moved for step in steps] == [True, False, True, True, False, True]
        assert int(arguments.state.updates) == 4
        losses = [line["loss"] for line in run_folder.read_losses(folder)]
        assert [loss is not None for loss in losses] == [step.moved for step in steps]
    lines = [json.loads(line) for line in (folder / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 5][: allowed + 1]
    assert all(len(line["faces"]) == 8 and line["learning_rate"] > 0 for line in lines)
    assert all(p.isfinite().all() for p in arguments.state.unet.parameters())


def test_speed_counts_all_the_time_that_passes(opening: Opening) -> None:
    """Also what the caller takes between two steps."""
    steps = loop.train(opening())
    for _ in range(4):
        next(steps)
        time.sleep(0.2)
    last = next(steps)
    assert last.seconds > 4 * 0.2 / 5 and last.number == 5
    assert last.images_per_second == pytest.approx(8 / last.seconds)
    assert last.seconds_left == last.seconds  # one step is left
