"""The training loop: what reaches the model, the average, the schedule, and exact resume."""

import dataclasses
import itertools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import Latents
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from what_is_left import difference, left_in

import config as config_module
import train
from config import Config, TrainingConfig, UNetConfig, override
from diffusion import determinism
from diffusion.objective import Objective
from files import InUse
from models.custom_unet_celeba_ldm import build_unet
from training import checkpoints, loop, run_folder
from training import experiment as experiment_module
from training.batches import Batches
from training.experiment import Experiment
from training.loop import learning_rate_at
from training.processes import stop_on_signal
from training.state import changed_settings, check_resume
from training.tracking import TIMESTEP_BINS, Step

COUNT = 26  # faces: three batches of 8 and an incomplete one


def caption(position: int, wording: int) -> str:
    return f"a photo of a {'wo' * (position % 2)}man with {['black', 'gray'][wording % 2]} hair"


def other_unet(config: UNetConfig) -> torch.nn.Module:
    unet = build_unet(config)
    for parameter in unet.parameters():
        parameter.data.add_(1.0)
    return unet


@pytest.fixture
def inputs(
    opening: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Experiment]:
    """Makes an experiment over made-up latents, as a fresh process would open it."""

    def make(
        latents: Latents | None = None,
        folder: str = "run",
        other_start: bool = False,
        flip: bool = True,
        snr_gamma: float = 5.0,
        text_fingerprint: str = "text",
        **changes: Any,
    ) -> Experiment:
        opened = opening(latents or Latents(COUNT, 0.5), folder, **changes)
        settings = {"data.flip": flip, "diffusion.snr_gamma": snr_gamma}
        opened.config, opened.caption = override(opened.config, settings), caption
        opened.text_fingerprint = text_fingerprint
        if other_start:  # weights that a checkpoint must replace
            monkeypatch.setattr(experiment_module, "build_unet", other_unet)
        return opened

    return make


Inputs = Callable[..., Experiment]


def finish(arguments: Experiment) -> list[Step]:
    return list(loop.train(arguments))


def stop_after(arguments: Experiment, steps: int, number: int) -> None:
    """Train until a real signal, sent to this process after `steps` steps, ends it."""
    with pytest.raises(KeyboardInterrupt, match=f"step {arguments.state.step + steps + 1}"):
        for done, _ in enumerate(loop.train(arguments), start=1):
            if done == steps:
                signal.raise_signal(number)


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


# --- moving average ---


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_its_recursion(inputs: Inputs, decay: float) -> None:
    arguments = inputs(ema_decay=decay, learning_rate=1e-2)
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


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_the_optimiser_runs_at_the_rate_of_its_step(inputs: Inputs, decay: str) -> None:
    arguments = inputs(lr_decay=decay, learning_rate=3e-3, weight_decay=0.07)
    for step in loop.train(arguments):
        (group,) = arguments.state.optimizer.param_groups
        want = learning_rate_at(step.number - 1, 6, arguments.config.training)
        assert group["lr"] == step.learning_rate == want
        assert group["weight_decay"] == 0.07


def test_gradients_are_clipped(inputs: Inputs) -> None:
    arguments = inputs(max_grad_norm=1e-3)
    for _ in loop.train(arguments):
        gradients = [p.grad for p in arguments.state.unet.parameters()]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        assert norm == pytest.approx(1e-3, rel=1e-2)


# --- the order of the faces, and the randomness of a step ---


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


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_the_shares_of_processes_are_the_batch(inputs: Inputs, processes: int) -> None:
    """Noise, timesteps, captions and mirroring too: a sample does not know who computes it."""
    opened = inputs()
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


def test_a_batch_holds_the_tokens_of_its_captions(inputs: Inputs) -> None:
    """Those of the wording of its epoch; each text is tokenized once."""
    opened, asked = inputs(cfg_dropout_prob=0.3), []
    tokenize = opened.text_encoder.tokenize

    def counted(captions: Sequence[str]) -> torch.Tensor:
        asked.extend(captions)
        return tokenize(captions)

    config, dropped = opened.config, 0
    batches = Batches(
        opened.latents, caption, counted, opened.objective, config.data, config.training
    )
    seen = set()
    for step in [*range(8), *range(8)]:
        batch = batches[step]
        for face, tokens in zip(batches.faces(step), batch.tokens, strict=True):
            empty, own = tokenize(["", caption(face, step // 3)])
            assert torch.equal(tokens, own) or torch.equal(tokens, empty)
            dropped += torch.equal(tokens, empty)
            seen.add(tuple(tokens.tolist()))
    assert 0.1 < dropped / (16 * 8) < 0.5
    assert len(seen) <= len(asked) <= 26 * 3 + 2  # of each wording met, and the empty one twice


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_a_batch_is_a_function_of_its_number(inputs: Inputs, threads: int) -> None:
    batches = inputs().batches
    wanted = [batches[step] for step in range(5)]
    ahead = list(inputs().batches.ahead(1, 5, threads))
    assert len(ahead) == 4
    for batch, want in zip(ahead, wanted[1:], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(batch, want, strict=True))


# --- what reaches the model ---


def test_latents_are_fresh_samples_of_the_posterior(
    inputs: Inputs, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    latents = Latents(count=8, std=0.5)
    finish(inputs(latents, num_epochs=6, flip=False))
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
    inputs: Inputs, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    opened = inputs(snr_gamma=0.01)
    for step, call in zip(loop.train(opened), spied_losses, strict=False):
        assert step.loss == pytest.approx(call["losses"].mean().item(), rel=1e-6)
        bins = call["timesteps"] * TIMESTEP_BINS // 1000
        for number, value in enumerate(step.loss_by_timestep):
            inside = call["losses"][bins == number]
            want = pytest.approx(inside.mean().item(), rel=1e-5) if len(inside) else None
            assert value == want
    assert len(spied_losses) == 6


def test_the_denoiser_sees_the_captions_of_its_faces(
    inputs: Inputs, spied_losses: list[dict[str, torch.Tensor]]
) -> None:
    arguments = inputs(cfg_dropout_prob=0.0)
    epochs = [step.epoch for step in loop.train(arguments)]
    assert epochs == [0, 0, 1, 1, 1, 2]
    for number, (positions, _) in enumerate(arguments.latents.asked):
        want = arguments.text_encoder([caption(p, number // 3) for p in positions])
        torch.testing.assert_close(spied_losses[number]["text"], want, rtol=0, atol=1e-5)


def test_samples_of_weight_zero_give_no_gradient(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Objective, "weight", lambda self, timesteps: timesteps * 0.0)
    opened = inputs()
    next(loop.train(opened))
    assert all(not weight.grad.any() for weight in opened.state.weights)


@pytest.mark.parametrize("flip", [True, False])
def test_mirrored_faces_are_asked_for(inputs: Inputs, flip: bool) -> None:
    arguments = inputs(num_epochs=4, flip=flip, checkpoint_every_n_epochs=4)
    finish(arguments)
    flipped = [f for _, batch in arguments.latents.asked for f in batch]
    share = np.mean(flipped)
    assert (0.3 < share < 0.7) if flip else share == 0
    assert not flip or len({tuple(batch) for _, batch in arguments.latents.asked}) > 6


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_unet_computes_in_the_asked_precision_at_every_step(
    inputs: Inputs, precision: str
) -> None:
    arguments = inputs(mixed_precision=precision)
    seen: list[torch.dtype] = []
    unet = arguments.state.unet
    unet.conv_in.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    finish(arguments)
    assert seen == [torch.bfloat16 if precision == "bf16" else torch.float32] * 6
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


def test_it_overfits_eight_faces(inputs: Inputs) -> None:
    arguments = inputs(Latents(8, 0.0), num_epochs=300, learning_rate=3e-3, flip=False)
    losses = [step.loss for step in loop.train(arguments)]
    # Latents of white noise cannot be guessed, only remembered: without memory the loss stays at 1.
    assert len(losses) == 300 and np.mean(losses[:5]) > 0.95
    assert np.mean(losses[-100:]) < 0.75


# --- stopping and going on ---


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(("steps", "number"), [(1, signal.SIGINT), (3, signal.SIGTERM)])
def test_going_on_is_as_never_having_stopped(
    inputs: Inputs, precision: str, steps: int, number: int
) -> None:
    options = {"mixed_precision": precision, "lr_decay": "cosine", "checkpoint_every_n_epochs": 9}
    whole = inputs(folder="whole", **options)
    finish(whole)
    stopped = inputs(folder="stopped", **options)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    stop_after(stopped, steps, number)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    name = f"celeba_ldm_unet_checkpoint_epoch_{(steps + 1) // 3}_step_{steps + 1}.pt"
    assert [p.name for p in stopped.folder.glob("*.pt")] == [name]
    resumed = inputs(folder="stopped", other_start=True, **options)
    assert resumed.state.step == steps + 1
    numbers = [step.number for step in loop.train(resumed)]
    assert numbers == list(range(steps + 2, 7))
    assert difference(left_in(resumed.folder), left_in(whole.folder)) == ""
    _, last = checkpoints.open_newest(whole.folder)
    assert (last.step, last.epoch) == (6, 2)
    assert difference(dict(last.ema), dict(resumed.state.ema_unet.state_dict())) == ""


def test_a_finished_run_has_nothing_left_to_do_and_may_be_made_longer(inputs: Inputs) -> None:
    finish(inputs(lr_decay="constant"))
    again = inputs(lr_decay="constant")
    before = left_in(again.folder)
    assert finish(again) == [] and difference(left_in(again.folder), before) == ""
    longer = inputs(num_epochs=3, lr_decay="constant")
    assert [step.number for step in loop.train(longer)] == [7, 8, 9]


def test_the_step_at_which_a_run_stops_is_yielded_too(inputs: Inputs) -> None:
    """Or the end of an epoch would have no grid of samples."""
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        for step in loop.train(inputs()):
            seen.append(step.number)
            if step.number == 2:
                signal.raise_signal(signal.SIGTERM)
    assert seen == [1, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no closed terminals on Windows")
def test_a_closed_terminal_stops_no_run_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a process
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set() and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_acts_at_once(inputs: Inputs) -> None:
    steps = loop.train(inputs())
    next(steps)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(signal.SIGINT)
    assert "stopped after" not in str(caught.value)
    steps.close()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- refusals ---


def test_a_run_begun_with_another_fingerprint_is_refused(inputs: Inputs) -> None:
    """Other faces would change the order of all of them; other frozen models, the latents."""
    finish(inputs(text_fingerprint="0123"))
    with pytest.raises(ValueError, match=f"faces.*{COUNT} in the checkpoint, {COUNT + 8} now"):
        finish(inputs(Latents(COUNT + 8, 0.5), text_fingerprint="0123"))
    with pytest.raises(ValueError, match=r"0123-frozen.*4567-frozen"):
        finish(inputs(text_fingerprint="4567"))
    assert finish(inputs(text_fingerprint="0123")) == []


def test_a_run_folder_is_held_from_the_opening_to_the_end(inputs: Inputs) -> None:
    opened = inputs()
    with pytest.raises(InUse, match="process"), run_folder.hold(opened.folder):
        pass
    next(loop.train(opened))
    with pytest.raises(InUse), run_folder.hold(opened.folder):
        pass
    opened.close()
    with run_folder.hold(opened.folder):
        pass


def test_opening_a_run_again_in_one_process_replaces_the_earlier_opening(inputs: Inputs) -> None:
    """As a notebook's cell that is run a second time."""
    opened = inputs()
    again = Experiment(opened.config, opened.folder)
    opened.close()
    with pytest.raises(InUse), run_folder.hold(again.folder):
        pass
    again.close()


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_batches_that_are_not_finite_are_skipped_up_to_a_bound(
    inputs: Inputs, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the six steps blow up; what they would have done never reaches weights or average."""
    real, calls = Objective.loss, []

    def loss(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return real(*arguments) * (math.nan if len(calls) in (2, 5) else 1.0)

    monkeypatch.setattr(Objective, "loss", loss)
    arguments = inputs(skip_not_finite=allowed)
    folder, steps = arguments.folder, []
    if allowed < 2:
        with pytest.raises(FloatingPointError, match=r"not_finite\.jsonl"):
            steps.extend(loop.train(arguments))
    else:
        steps = finish(arguments)
        assert [step.moved for step in steps] == [True, False, True, True, False, True]
        assert int(arguments.state.updates) == 4
        losses = [line["loss"] for line in run_folder.read_losses(folder)]
        assert [loss is not None for loss in losses] == [step.moved for step in steps]
    lines = [json.loads(line) for line in (folder / "not_finite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 5][: allowed + 1]
    assert all(len(line["faces"]) == 8 and line["learning_rate"] > 0 for line in lines)
    assert all(p.isfinite().all() for p in arguments.state.unet.parameters())


FIXED_CHANGES = {
    "diffusion.prediction_type": "epsilon",
    "unet.widths": (64, 64),
    "models.text_encoder": "another/model",
}


def after_one_epoch(inputs: Inputs) -> Experiment:
    opened = inputs()
    steps = loop.train(opened)
    for _ in range(3):
        next(steps)
    steps.close()
    return opened


@pytest.mark.parametrize("name", FIXED_CHANGES)
def test_changed_settings_are_refused_by_name(inputs: Inputs, name: str) -> None:
    opened = after_one_epoch(inputs)
    changed = override(opened.config, {name: FIXED_CHANGES[name]})
    found = checkpoints.open_newest(opened.folder)
    with pytest.raises(ValueError, match=rf"epoch_1\.pt.*{name}: "):
        check_resume(*found, changed, opened.fingerprint)


def test_the_micro_batch_may_change_on_resume_and_the_batch_may_not(inputs: Inputs) -> None:
    whole = inputs(folder="whole")
    finish(whole)
    after_one_epoch(inputs)
    resumed = inputs(micro_batch_size=3)
    assert [step.number for step in loop.train(resumed)] == [4, 5, 6]
    assert run_folder.read_changes(resumed.folder) == []
    for one, other in zip(whole.state.weights, resumed.state.weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"training\.batch_size: 8 in the checkpoint, 4 now"):
        _ = inputs(batch_size=4).state


def test_a_lower_learning_rate_is_taken_said_aloud_and_recorded(
    inputs: Inputs, capsys: pytest.CaptureFixture
) -> None:
    """It is what the product itself advises after a loss that is not finite."""
    after_one_epoch(inputs)
    lower = inputs(learning_rate=1e-5)
    steps = finish(lower)
    change = "training.learning_rate: 0.0007 in the checkpoint, 1e-05 now"
    assert f"changed after step 3: {change}" in capsys.readouterr().out
    assert [step.number for step in steps] == [4, 5, 6] and steps[0].learning_rate < 1e-4
    assert run_folder.read_changes(lower.folder) == [{"step": 3, "changed": [change]}]
    again = inputs(learning_rate=1e-5)  # nothing changes any more, and the record stays
    assert finish(again) == [] and len(run_folder.read_changes(again.folder)) == 1


def test_what_does_not_shape_the_weights_may_change(tiny_config: Config) -> None:
    free = {
        "data.source": "elsewhere",
        "data.cache_latents": False,
        "training.checkpoint_every_n_epochs": 7,
        "training.keep_last": 9,
        "sampling.sampler": "ddim",
    }
    assert changed_settings(tiny_config, override(tiny_config, free)) == ([], [])


@pytest.mark.parametrize(("decay", "free"), [("constant", True), ("cosine", False)])
def test_a_run_may_be_made_longer_unless_its_rate_falls_towards_the_end(
    tiny_config: Config, decay: str, free: bool
) -> None:
    before = override(tiny_config, {"training.lr_decay": decay})
    refused, _ = changed_settings(before, override(before, {"training.num_epochs": 99}))
    assert refused == ([] if free else ["training.num_epochs: 2 in the checkpoint, 99 now"])


@pytest.mark.parametrize("size", [1e-3, 0.5, 10.0, math.inf, math.nan])
@pytest.mark.parametrize("reads", [True, False])
def test_clipping_equals_pytorchs(
    size: float, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [torch.nn.Linear(5, 3) for _ in range(2)]
    for model in models:
        model.weight.grad = torch.linspace(-size, size, 15).view(3, 5)  # the bias has none
    gradients = [models[0].weight.grad]
    ours = torch.nn.utils.get_total_norm(gradients)
    monkeypatch.setattr(loop, "_reads_for_free", lambda _: reads)
    loop.clip_gradients(gradients, ours, 1.0)
    theirs = torch.nn.utils.clip_grad_norm_(models[1].parameters(), 1.0)
    assert torch.equal(ours, theirs) or (ours.isnan() and theirs.isnan())
    torch.testing.assert_close(
        models[0].weight.grad, models[1].weight.grad, rtol=0, atol=0, equal_nan=True
    )


# --- speed, and what train.py shows ---


def test_speed_counts_all_the_time_that_passes(inputs: Inputs) -> None:
    """Also what the caller takes between two steps."""
    steps = loop.train(inputs())
    for _ in range(4):
        step = next(steps)
        time.sleep(0.2)
    last = next(steps)
    assert last.seconds > 4 * 0.2 / 5 and last.number == 5
    assert last.images_per_second == pytest.approx(8 / last.seconds)
    assert last.seconds_left == pytest.approx(last.seconds) < 2 * step.seconds_left


def test_every_epoch_has_its_grid_of_samples_wherever_a_run_was_stopped(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step after a resume ends an epoch, and so does the step at which it stops."""
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    monkeypatch.setattr(train, "config_from", lambda arguments: tiny_config)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    append, stops = run_folder.append_lines, [1, 5]  # the step after these is the last one

    def append_and_stop(path: Path, lines: list[dict[str, Any]]) -> None:
        append(path, lines)
        if path.name == run_folder.LOSSES and lines[0]["step"] in stops:
            stops.remove(lines[0]["step"])
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_folder, "append_lines", append_and_stop)
    for _ in range(2):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(SystemExit):
            train.main()
    grids = sorted((tmp_path / "checkpoints" / "test" / "samples").iterdir())
    assert [path.name for path in grids] == ["step_0000003.png", "step_0000006.png"]


def test_a_stored_config_and_a_preset_are_not_both_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=config.json", "--preset=demo"])
    with pytest.raises(SystemExit, match="2"):
        train.main()
