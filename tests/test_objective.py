"""The forward process, the target, the weights and caption dropout against their closed forms."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DiffusionConfig
from diffusion.objective import Objective

TARGETS = ["epsilon", "v_prediction"]
TIMES = torch.tensor([0, 1, 17, 250, 500, 731, 998, 999])
SHAPE = (len(TIMES), 4, 8, 8)
TEXT = torch.zeros(len(TIMES), 3, 5)
BOTH = pytest.mark.parametrize("prediction_type", TARGETS)


def objective_for(prediction_type: str, **options: object) -> Objective:
    return Objective(DiffusionConfig(prediction_type=prediction_type, **options))


def cosine_abar(timesteps: torch.Tensor) -> torch.Tensor:
    """abar of squaredcos_cap_v2 from its definition (Nichol & Dhariwal 2021), in float64."""

    def bar(part: float) -> float:
        return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)[timesteps]


def data_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_the_schedule_is_the_specified_cosine() -> None:
    objective = Objective(DiffusionConfig())
    want = cosine_abar(torch.arange(1000))
    torch.testing.assert_close(objective.alpha.double().square(), want, rtol=2e-4, atol=1e-9)
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
    assert objective.scheduler_options == options | {"num_train_timesteps": 1000}


@BOTH
def test_it_agrees_with_diffusers(prediction_type: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    objective, (latents, noise) = objective_for(prediction_type), data_and_noise()
    noisy = scheduler.add_noise(latents, noise, TIMES)
    torch.testing.assert_close(objective.add_noise(latents, noise, TIMES), noisy)
    velocity = scheduler.get_velocity(latents, noise, TIMES)
    want = noise if prediction_type == "epsilon" else velocity
    torch.testing.assert_close(objective.target(latents, noise, TIMES), want)


@BOTH
def test_a_perfect_denoiser_loses_nothing_and_a_zero_one_the_mean_square(
    prediction_type: str,
) -> None:
    objective = objective_for(prediction_type)
    latents, noise = data_and_noise()
    target = objective.target(latents, noise, TIMES)

    def loss_of(prediction: torch.Tensor) -> torch.Tensor:
        return objective.loss(lambda x, t, text: prediction, latents, TEXT, TIMES, noise)

    assert torch.equal(loss_of(target), torch.zeros(len(TIMES)))
    mean_square = target.flatten(1).square().mean(1)
    torch.testing.assert_close(loss_of(torch.zeros(SHAPE)), mean_square)
    # A constant error of 0.5 in one sample shows in that sample alone.
    wrong = target.clone()
    wrong[3] += 0.5
    want = torch.zeros(len(TIMES))
    want[3] = 0.25
    torch.testing.assert_close(loss_of(wrong), want)


def test_the_loss_is_taken_in_float32() -> None:
    latents, noise = torch.zeros(SHAPE), torch.ones(SHAPE)
    low = torch.full(SHAPE, 1 + 2**-7, dtype=torch.bfloat16)
    loss = objective_for("epsilon").loss(lambda x, t, text: low, latents, TEXT, TIMES, noise)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((len(TIMES),), 2.0**-14))


@BOTH
def test_without_gamma_every_sample_weighs_one(prediction_type: str) -> None:
    weights = objective_for(prediction_type).weight(TIMES)
    assert torch.equal(weights, torch.ones(len(TIMES)))


@given(gamma=st.floats(0.1, 100), prediction_type=st.sampled_from(TARGETS))
@settings(max_examples=40, deadline=None)
def test_min_snr_weights(gamma: float, prediction_type: str) -> None:
    times = torch.arange(1000)
    weights = objective_for(prediction_type, snr_gamma=gamma).weight(times)
    abar = cosine_abar(times)
    snr = abar / (1 - abar)
    divisor = snr if prediction_type == "epsilon" else snr + 1
    want = snr.clamp(max=gamma) / divisor
    assert torch.isfinite(weights).all() and (weights > 0).all()
    torch.testing.assert_close(weights.double(), want, rtol=3e-3, atol=0)


@BOTH
@pytest.mark.parametrize("sampling", ["uniform", "weight"])
def test_an_even_share_of_the_weight_reaches_high_noise(
    prediction_type: str, sampling: str
) -> None:
    """A face's colours are decided where log SNR < -2, which min-SNR alone leaves to 3 %."""
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000

    def total(share: float) -> tuple[float, float]:
        objective = objective_for(
            prediction_type, snr_gamma=5.0, timestep_sampling=sampling, uniform_share=share
        )
        times = objective.timesteps(uniform)
        weights = objective.weight(times).double()
        return weights.sum().item(), weights[objective.snr[times] < torch.e**-2].sum().item()

    (whole, without), (same, all_even), (_, half) = total(0.0), total(1.0), total(0.5)
    assert same == pytest.approx(whole, rel=1e-3)
    assert all_even / whole == pytest.approx(0.22, abs=0.01)
    assert half == pytest.approx((without + all_even) / 2, rel=1e-2)
    assert prediction_type == "epsilon" or without / whole < 0.035


# --- how t is drawn ---


def test_uniform_timesteps_cover_all_alike() -> None:
    uniform = (torch.arange(4000) + 0.5) / 4000
    counts = objective_for("epsilon").timesteps(uniform).bincount(minlength=1000)
    assert (counts == 4).all()


@BOTH
def test_drawing_by_weight_is_the_same_objective(prediction_type: str) -> None:
    """The mean of weight * f(t) over uniform t is that of f(t) over t drawn by weight, scaled."""
    weighted = objective_for(prediction_type, snr_gamma=5.0)
    drawn = objective_for(prediction_type, snr_gamma=5.0, timestep_sampling="weight")
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for f in (lambda t: t.double(), lambda t: (t.double() / 100).sin() + 2):
        times = weighted.timesteps(uniform)
        want = (weighted.weight(times).double() * f(times)).mean()
        times = drawn.timesteps(uniform)
        got = (drawn.weight(times).double() * f(times)).mean()
        torch.testing.assert_close(got, want, rtol=2e-3, atol=0)
    # All of a batch is at work: no draw is spent on a timestep that hardly counts.
    assert len(drawn.loss_weight.unique()) == 1
