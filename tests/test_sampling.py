"""Samplers and guidance: exact denoisers, diffusers called directly, and one seed an image.

The trap that these tests keep shut: at t = 999 of squaredcos_cap_v2 alpha is 5e-5, so
x_0 = (x - sigma eps) / alpha magnifies any error of eps 20,000 times, and diffusers' defaults
either clamp latents to [-1, 1] or start there.
"""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DiffusionConfig
from diffusion import sampling
from diffusion.objective import Objective

STEPS = {"ddpm": 1000, "ddim": 50, "dpm++": 20}
LOST = {"ddpm": 0.01, "ddim": 0.07, "dpm++": 0.03}  # of the deviation, in so many steps
SHAPE = (4, 16, 16)
CPU = torch.device("cpu")
SAMPLERS = pytest.mark.parametrize("sampler", sampling.SAMPLERS)
BOTH = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
ALPHAS_BAR = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
ALPHA, SIGMA = ALPHAS_BAR.sqrt(), (1 - ALPHAS_BAR).sqrt()


def gaussian_denoiser(std: float, prediction_type: str, error: float = 0.0) -> sampling.Predictor:
    """What a perfect model of data N(0, std^2) predicts, plus white error.

    E[eps | x] = sigma x / (alpha^2 std^2 + sigma^2), E[x_0 | x] = alpha std^2 x / (same).
    """
    generator = torch.Generator().manual_seed(7)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = ALPHA[t], SIGMA[t]
        variance = alpha**2 * std**2 + sigma**2
        noise, data = sigma * x / variance, alpha * std**2 * x / variance
        exact = noise if prediction_type == "epsilon" else alpha * noise - sigma * data
        return exact + error * torch.randn(x.shape, generator=generator)

    return predict


def any_denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (x * 1.3 + t / 1000).sin()


def ours(sampler: str, prediction_type: str) -> SchedulerMixin:
    objective = Objective(DiffusionConfig(prediction_type=prediction_type))
    return sampling.build_sampler(sampler, objective)


# --- the distribution that comes out ---


@SAMPLERS
@BOTH
@pytest.mark.parametrize(("std", "error"), [(10.0, 0.0), (0.2, 0.0), (1.0, 0.03)])
def test_the_samples_have_the_datas_deviation(
    sampler: str, prediction_type: str, std: float, error: float
) -> None:
    """Small details, and a picture's mean colour, which is 5 to 10 in an orthonormal transform."""
    predict = gaussian_denoiser(std, prediction_type, error)
    scheduler = ours(sampler, prediction_type)
    *_, latents = sampling.trajectory(predict, scheduler, SHAPE, range(16), STEPS[sampler], CPU)
    assert latents.std().item() == pytest.approx(std, rel=0.1 if error else LOST[sampler])


# --- diffusers called directly ---


def plain_scheduler(sampler: str, prediction_type: str) -> SchedulerMixin:
    """The same samplers, written out anew."""
    common = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type}
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**common)
    kind = {"ddpm": "sde-dpmsolver++", "ddim": "dpmsolver++"}[sampler]
    return DPMSolverMultistepScheduler(**common, solver_order=1, algorithm_type=kind)


@SAMPLERS
@BOTH
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_step_of_every_image_is_diffusers_own_with_its_seed_alone(
    sampler: str, prediction_type: str, steps: int
) -> None:
    seeds, scheduler = [11, 3, 4_000_000_000], ours(sampler, prediction_type)
    got = list(sampling.trajectory(any_denoiser, scheduler, SHAPE, seeds, steps, CPU))
    assert len(got) == steps + 1
    for image, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        plain = plain_scheduler(sampler, prediction_type)
        plain.set_timesteps(timesteps=scheduler.timesteps)
        x = torch.randn((1, *SHAPE), generator=generator)
        assert torch.equal(got[0][image], x[0])
        for number, t in enumerate(plain.timesteps, start=1):
            options = {"generator": generator} if sampler == "ddpm" else {}
            x = plain.step(any_denoiser(x, t), t, x, **options).prev_sample
            assert torch.equal(got[number][image], x[0]), f"step {number}"


def test_ddim_is_song_et_al() -> None:
    """x_s = alpha_s x_0 + sigma_s eps: Song et al. 2021, equation 12, without noise."""
    scheduler = ours("ddim", "v_prediction")
    got = list(sampling.trajectory(any_denoiser, scheduler, SHAPE, [5], 50, CPU))
    x, times = got[0], scheduler.timesteps.tolist()
    for number, t in enumerate(times, start=1):
        v = any_denoiser(x, torch.tensor(t))
        clean, noise = ALPHA[t] * x - SIGMA[t] * v, SIGMA[t] * x + ALPHA[t] * v
        is_last = number == len(times)
        x = clean if is_last else ALPHA[times[number]] * clean + SIGMA[times[number]] * noise
        torch.testing.assert_close(got[number], x, rtol=1e-3, atol=1e-3)


# --- guidance ---


def mean_of_text(
    latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """A denoiser."""
    assert len(latents) == len(timesteps) == len(text)
    return text.mean(dim=(1, 2)).view(-1, 1, 1, 1) + latents


@given(
    scale=st.floats(-10, 20),
    texts=st.lists(st.floats(-5, 5), min_size=1, max_size=4),
    null=st.floats(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_guidance_is_its_formula(scale: float, texts: list[float], null: float) -> None:
    text = torch.tensor(texts).view(-1, 1, 1).expand(-1, 3, 5)
    predict = sampling.guide(mean_of_text, text, torch.full((1, 3, 5), null), scale)
    latents = torch.randn(len(texts), *SHAPE)
    want = null + scale * (torch.tensor(texts) - null).view(-1, 1, 1, 1) + latents
    torch.testing.assert_close(predict(latents, 500), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("scale", "size"), [(0.0, 3), (1.0, 3), (3.0, 6), (-1.0, 6)])
def test_each_step_calls_the_denoiser_once_and_doubles_only_where_needed(
    scale: float, size: int
) -> None:
    calls, scheduler = [], ours("ddim", "epsilon")

    def denoiser(*inputs: torch.Tensor) -> torch.Tensor:
        calls.append((len(inputs[0]), inputs[1].unique().item()))
        return mean_of_text(*inputs)

    predict = sampling.guide(denoiser, torch.ones(3, 2, 5), torch.zeros(1, 2, 5), scale)
    list(sampling.trajectory(predict, scheduler, SHAPE, [1, 2, 3], 7, CPU))
    assert calls == [(size, t) for t in scheduler.timesteps.tolist()]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_above_the_limit_guidance_is_off_and_below_it_unchanged(scale: float) -> None:
    texts = torch.ones(3, 2, 5), torch.zeros(1, 2, 5)
    limited, everywhere, off = (
        sampling.guide(mean_of_text, *texts, *how) for how in ((scale, 750), (scale,), (1.0,))
    )
    latents = torch.randn(3, *SHAPE)
    assert torch.equal(limited(latents, 749), everywhere(latents, 749))
    noisiest = everywhere if scale < 1 else off  # less than the conditional model stays less
    assert torch.equal(limited(latents, 750), noisiest(latents, 750))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("below", [None, 500])
def test_the_way_from_the_perturbed_prediction_is_added_where_it_is_asked_for(
    scale: float, below: int | None
) -> None:
    calls = []

    def perturbed(latents: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        return 0.25 * mean_of_text(latents, times, text)

    texts = torch.ones(3, 2, 5), torch.full((1, 2, 5), 2.0)
    plain = sampling.guide(mean_of_text, *texts, scale)
    pushed = sampling.guide(mean_of_text, *texts, scale, None, perturbed, 0.8, below)
    latents = torch.randn(3, *SHAPE)
    # The text that is drawn: without guidance's scale the empty caption.
    added = 0.8 * 0.75 * ((1 if scale else 2) + latents)
    torch.testing.assert_close(pushed(latents, 499), plain(latents, 499) + added)
    torch.testing.assert_close(
        pushed(latents, 500), plain(latents, 500) + (0 if below else 1) * added
    )
    assert calls == ([3] if below else [3, 3])


# --- timesteps ---


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=str(steps)):
        sampling.set_timesteps(ours("dpm++", "v_prediction"), steps)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
def test_any_number_of_steps_goes_from_noise_to_data_and_repeats_none(schedule: str) -> None:
    """A start at t = 901 would lose 15 % of the contrast, as pure noise has none."""
    scheduler = sampling.build_sampler("dpm++", Objective(DiffusionConfig(beta_schedule=schedule)))
    level = scheduler.lambda_t
    start = int((level >= -5.1).nonzero()[-1])
    for steps in (1, 2, 3, *range(4, 1001, 7), 999, 1000):
        times = sampling.spread_timesteps(scheduler, steps)
        assert len(times) == min(steps, start + 1) and times[0] == start
        assert 0 <= times[-1] <= 500 // steps or steps == 1
        assert all(later < earlier for earlier, later in pairwise(times))


def test_half_of_the_steps_are_even_in_t_and_half_in_the_noise_level() -> None:
    scheduler = ours("ddim", "v_prediction")
    times = torch.tensor(sampling.spread_timesteps(scheduler, 40))
    level = scheduler.lambda_t[times]
    passed_t = (995 - times) / (995 - 12)
    passed_level = (level - level[0]) / (scheduler.lambda_t[12] - level[0])
    passed = (passed_t + passed_level) / 2
    torch.testing.assert_close(passed, torch.linspace(0, 1, 40), rtol=0, atol=0.006)
