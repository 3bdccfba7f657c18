"""Samplers and guidance: exact denoisers, diffusers called directly, and one seed an image.

The trap that these tests keep shut: at t = 999 of squaredcos_cap_v2 alpha is 5e-5, so
x_0 = (x - sigma eps) / alpha magnifies any error of eps 20,000 times, and diffusers' defaults
either clamp latents to [-1, 1] or start there.
"""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DiffusionConfig
from diffusion import sampling
from diffusion.objective import build_objective

STEPS = {"ddpm": 1000, "ddim": 50, "dpm++": 20}
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
    objective = build_objective(DiffusionConfig(prediction_type=prediction_type))
    return sampling.build_sampler(sampler, objective)


# --- the distribution that comes out ---


@SAMPLERS
@BOTH
@pytest.mark.parametrize(("std", "error"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.03), (0.5, 0.03)])
def test_the_samples_have_the_datas_deviation(
    sampler: str, prediction_type: str, std: float, error: float
) -> None:
    predict = gaussian_denoiser(std, prediction_type, error)
    scheduler = ours(sampler, prediction_type)
    *_, latents = sampling.trajectory(predict, scheduler, SHAPE, range(16), STEPS[sampler], CPU)
    assert latents.std().item() == pytest.approx(std, rel=0.1 if error else 0.04)


# --- diffusers called directly ---


def plain_scheduler(sampler: str, prediction_type: str) -> SchedulerMixin:
    """The same samplers, written out anew."""
    common = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type}
    if prediction_type == "epsilon":
        common["lambda_min_clipped"] = -5.1
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**common)
    kind = {"ddpm": "sde-dpmsolver++", "ddim": "dpmsolver++"}[sampler]
    options = {"solver_order": 1, "algorithm_type": kind, "timestep_spacing": "trailing"}
    return DPMSolverMultistepScheduler(**common, **options)


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
        scheduler = plain_scheduler(sampler, prediction_type)
        scheduler.set_timesteps(steps)
        x = torch.randn((1, *SHAPE), generator=generator)
        assert torch.equal(got[0][image], x[0])
        for number, t in enumerate(scheduler.timesteps, start=1):
            options = {"generator": generator} if sampler == "ddpm" else {}
            x = scheduler.step(any_denoiser(x, t), t, x, **options).prev_sample
            assert torch.equal(got[number][image], x[0]), f"step {number}"


def test_ddim_is_diffusers_ddim() -> None:
    """First-order DPM-Solver++ is DDIM (Lu et al. 2022, section 4)."""
    scheduler = ours("ddim", "v_prediction")
    got = list(sampling.trajectory(any_denoiser, scheduler, SHAPE, [5], 50, CPU))
    ddim = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    ddim.set_timesteps(50)
    x = got[0]
    for number, t in enumerate(ddim.timesteps, start=1):
        x = ddim.step(any_denoiser(x, t), t, x).prev_sample
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


# --- numbers of steps ---


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("dpm++", 1000), ("ddim", 61)],
    ids=["timesteps repeat: a division by zero", "diffusers adds a 62nd at -1"],
)
def test_unsound_numbers_of_steps_are_refused(sampler: str, steps: int) -> None:
    with pytest.raises(ValueError, match=str(steps)):
        sampling.set_timesteps(ours(sampler, "v_prediction"), steps)


@SAMPLERS
@BOTH
def test_what_is_accepted_starts_at_noise_and_ends_at_data(
    sampler: str, prediction_type: str
) -> None:
    """Timesteps that begin at t = 901 would lose 15 % of the contrast, as pure noise has none."""
    scheduler, accepted = ours(sampler, prediction_type), 0
    for steps in range(1, 1001, 7):
        try:
            sampling.set_timesteps(scheduler, steps)
        except ValueError:
            continue
        accepted += 1
        times = scheduler.timesteps
        assert times.min() >= 0 and len(times.unique()) == len(times) <= steps
        assert ALPHA[times[0]] < 0.01 and (steps < 10 or ALPHA[times[-1]] > 0.98)
    assert accepted > 20
