"""A batch becomes the same gradient whatever the parts, the precision or the memory."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import Opening
from torch import Tensor

from config import Config
from models.custom_unet_celeba_ldm import build_unet
from models.device import autocast
from training import loop, run_folder
from training.device_step import HalfCopy
from training.experiment import Experiment
from training.loop import apply_gradients, compute, train
from training.state import new_state


def gradients_of(opened: Experiment) -> tuple[list[Tensor], Tensor]:
    """The gradient of the first batch, as training takes it, and its losses."""
    settings = opened.config.training
    step = compute(
        opened.state,
        opened.objective,
        opened.text_encoder,
        settings,
        opened.precision,
        opened.accelerator,
    )
    losses = step.backward(opened.batches[0], settings.micro_batch_size or settings.batch_size)
    return [weight.grad.clone() for weight in opened.state.weights], losses


def test_micro_batches_give_the_gradient_of_the_whole_batch(opening: Opening) -> None:
    """Uneven ones, loss weights included: min-SNR gives each sample its own."""
    assert len(opening(name="a").batches[0].loss_weights.unique()) > 4
    whole, losses = gradients_of(opening(name="b"))
    parts, same_losses = gradients_of(opening(name="c", micro_batch_size=3))
    torch.testing.assert_close(same_losses, losses, rtol=1e-5, atol=1e-6)
    difference = [one - other for one, other in zip(whole, parts, strict=True)]
    assert max(part.abs().max() for part in difference) < 1e-6
    norm = torch.nn.utils.get_total_norm
    assert norm(difference) < 5e-6 * norm(whole)  # what float32 rounds in sums of another order


def test_gradient_checkpointing_gives_the_same_gradient(opening: Opening) -> None:
    plain, _ = gradients_of(opening(name="a"))
    opened = opening(name="b", gradient_checkpointing=True)
    checkpointed, _ = gradients_of(opened)
    assert opened.state.unet.is_gradient_checkpointing
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# --- out of memory ---


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_backward_pass_that_fails_half_way_leaves_nothing(
    opening: Opening, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    want, _ = gradients_of(opening(name="a", mixed_precision=precision, micro_batch_size=4))
    opened = opening(name="b", mixed_precision=precision, micro_batch_size=8)
    backward, failed = Tensor.backward, []

    def run_out(loss: Tensor) -> None:
        backward(loss)
        if not failed:  # with gradients in every weight
            failed.append(loss)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Tensor, "backward", run_out)
    monkeypatch.setattr(loop, "apply_gradients", lambda state: torch.zeros(()))
    next(train(opened))
    assert failed
    for one, other in zip(want, opened.state.weights, strict=True):
        assert torch.equal(one, other.grad)


# --- the half-precision copy ---


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_of_the_half_copy_are_autocasts_to_the_bit(
    tiny_config: Config, precision: str
) -> None:
    """Over an update of the weights, in micro-batches."""
    shape = dataclasses.replace(tiny_config.unet, widths=(32, 64))
    states = []
    for is_copied in (False, True):
        torch.manual_seed(0)
        state = new_state(build_unet(shape).train(), tiny_config.training)
        states.append(state)
        half = HalfCopy(state.unet, precision) if is_copied else None
        unet = half.unet if half else state.unet
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            for weight in state.weights:
                weight.grad = None
            if half:
                half.take_weights()
            for _ in range(3):
                latents = torch.randn(2, 4, 8, 8, generator=generator)
                text = torch.randn(2, 7, shape.text_width, generator=generator)
                with autocast(precision, torch.device("cpu")):
                    output = unet(latents, torch.tensor([3, 700]), text).sample
                output.float().square().mean().backward()
                if half:
                    half.give_gradients()
            state.set_learning_rate(1e-2)
            apply_gradients(state)
    plain, copied = states
    assert len(plain.weights) > 100
    for one, other in zip(plain.weights, copied.weights, strict=True):
        assert torch.equal(one.grad, other.grad) and torch.equal(one, other)


# --- float16 ---


def test_the_scaled_loss_is_unscaled_before_clipping(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A norm that is still scaled would be clipped to nothing."""
    monkeypatch.setattr(loop, "MAX_GRAD_NORM", 1e-3)
    moved = {}
    for precision in ("no", "fp16"):
        opened = opening(name=precision, mixed_precision=precision)
        gradients_of(opened)
        norm = apply_gradients(opened.state)
        moved[precision] = float(norm)
        clipped = torch.nn.utils.get_total_norm([p.grad for p in opened.state.unet.parameters()])
        assert float(clipped) == pytest.approx(min(1e-3, float(norm)), rel=1e-3)
    assert moved["fp16"] == pytest.approx(moved["no"], rel=0.02)


def test_an_overflow_moves_nothing_and_is_no_error(opening: Opening) -> None:
    opened = opening(mixed_precision="fp16")
    state = opened.state
    # So large a scale that the gradients overflow until it has fallen.
    state.scaler._init_scale = 2.0**60
    before = {name: value.clone() for name, value in state.unet.state_dict().items()}
    steps = train(opened)
    first = next(steps)
    assert not first.moved and np.isfinite(first.loss)
    assert all(torch.equal(value, before[n]) for n, value in state.unet.state_dict().items())
    assert all(torch.equal(value, before[n]) for n, value in state.ema_unet.state_dict().items())
    assert int(state.updates) == 0 and float(state.scaler.get_scale()) == 2.0**59
    rest = list(steps)
    assert len(rest) == 5 and not (opened.folder / run_folder.NOT_FINITE).exists()
    lines = run_folder.read_losses(opened.folder)
    assert sum(line["loss"] is None for line in lines) == sum(not s.moved for s in [first, *rest])


def test_a_scale_that_has_fallen_to_zero_is_no_overflow(opening: Opening) -> None:
    """It never rises again: no further step would move the weights."""
    opened = opening(mixed_precision="fp16")
    opened.state.scaler._init_scale = 0.0
    with pytest.raises(FloatingPointError):
        next(train(opened))


def test_a_loss_that_is_not_finite_is_no_overflow(
    opening: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = opening(mixed_precision="fp16")
    opened.latents.mean[:] = float("nan")
    with pytest.raises(FloatingPointError):
        list(train(opened))
