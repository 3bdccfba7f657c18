"""Samplers and guidance: exact denoisers, diffusers called directly, and one seed an image.

The trap that these tests keep shut: at t = 999 of squaredcos_cap_v2 alpha is 5e-5, so
x_0 = (x - sigma eps) / alpha magnifies any error of eps 20,000 times, and diffusers' defaults
either clamp latents to [-1, 1] or start there.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DiffusionConfig
from diffusion import sampling
from diffusion.objective import Objective, build_objective

STEPS = {"ddpm": 1000, "ddim": 50, "dpm++": 20}
SHAPE = (4, 16, 16)
CPU = torch.device("cpu")
SAMPLERS = pytest.mark.parametrize("sampler", sampling.SAMPLERS)
BOTH = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])


def alpha_sigma(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    abar = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[t.long()]
    return abar.sqrt(), (1 - abar).sqrt()


ALPHA, SIGMA = alpha_sigma(torch.arange(1000))


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


def objective_for(prediction_type: str) -> Objective:
    return build_objective(DiffusionConfig(prediction_type=prediction_type))


def sample(
    denoiser: Callable,
    scheduler: SchedulerMixin,
    text: torch.Tensor,
    null: torch.Tensor,
    scale: float,
    seeds: list[int],
    steps: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Guided samples, latents (B, C, h, w)."""
    predict = sampling.guide(denoiser, text, null, scale)
    *_, latents = sampling.trajectory(predict, scheduler, shape, seeds, steps, CPU)
    return latents


def final_std(scheduler: SchedulerMixin, predict: sampling.Predictor, steps: int) -> float:
    *_, latents = sampling.trajectory(predict, scheduler, SHAPE, range(16), steps, CPU)
    return latents.std().item()


def ours(sampler: str, prediction_type: str) -> SchedulerMixin:
    return sampling.build_sampler(sampler, objective_for(prediction_type))


# --- the distribution that comes out ---


@SAMPLERS
@BOTH
@pytest.mark.parametrize("std", [1.0, 0.5])
def test_an_exact_denoiser_gives_the_datas_deviation(
    sampler: str, prediction_type: str, std: float
) -> None:
    predict = gaussian_denoiser(std, prediction_type)
    got = final_std(ours(sampler, prediction_type), predict, STEPS[sampler])
    assert got == pytest.approx(std, rel=0.04)


@SAMPLERS
@BOTH
@pytest.mark.parametrize("error", [0.01, 0.03])
def test_a_slightly_wrong_denoiser_does_no_harm(
    sampler: str, prediction_type: str, error: float
) -> None:
    for std in (1.0, 0.5):
        predict = gaussian_denoiser(std, prediction_type, error)
        got = final_std(ours(sampler, prediction_type), predict, STEPS[sampler])
        assert got == pytest.approx(std, rel=0.1)


@BOTH
@pytest.mark.parametrize(("kind", "steps"), [(DDPMScheduler, 1000), (DDIMScheduler, 50)])
def test_the_trap_of_clipping(kind: type[SchedulerMixin], steps: int, prediction_type: str) -> None:
    """diffusers' default clip_sample=True cuts unit-variance latents even with a perfect model."""
    trapped = kind(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    assert final_std(trapped, gaussian_denoiser(1.0, prediction_type), steps) < 0.8


@pytest.mark.parametrize(
    ("trapped", "steps"),
    [
        (DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"), 20),
        (
            DDIMScheduler(
                beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="trailing"
            ),
            50,
        ),
    ],
)
def test_the_trap_of_starting_at_999_with_epsilon(trapped: SchedulerMixin, steps: int) -> None:
    """Without lambda_min_clipped, or with trailing steps, 1 % of error becomes six times data."""
    assert final_std(trapped, gaussian_denoiser(1.0, "epsilon"), steps) == pytest.approx(1, rel=0.1)
    assert final_std(trapped, gaussian_denoiser(1.0, "epsilon", 0.01), steps) > 3


@SAMPLERS
@BOTH
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50, 250])
def test_the_start_is_indistinguishable_from_noise(
    sampler: str, prediction_type: str, steps: int
) -> None:
    """Timesteps that begin at t = 901 would lose 15 % of the contrast, as pure noise has none."""
    scheduler = ours(sampler, prediction_type)
    sampling.set_timesteps(scheduler, steps)
    assert ALPHA[scheduler.timesteps[0]] < 0.01


@SAMPLERS
@BOTH
def test_a_denoiser_that_knows_the_image_gives_it_back(sampler: str, prediction_type: str) -> None:
    data = torch.randn((3, *SHAPE), generator=torch.Generator().manual_seed(1)) * 3

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # float64, as (x - alpha x_0) / sigma cancels where sigma is small
        alpha, sigma = ALPHA[t].double(), SIGMA[t].double()
        noise = (x.double() - alpha * data) / sigma
        exact = noise if prediction_type == "epsilon" else alpha * noise - sigma * data.double()
        return exact.float()

    scheduler = ours(sampler, prediction_type)
    *_, latents = sampling.trajectory(predict, scheduler, SHAPE, range(3), STEPS[sampler], CPU)
    torch.testing.assert_close(latents, data, rtol=0, atol=0.01)


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


@pytest.mark.parametrize("steps", [1, 10, 50])
def test_ddim_is_diffusers_ddim(steps: int) -> None:
    """First-order DPM-Solver++ is DDIM (Lu et al. 2022, section 4)."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x * 1.3 + t / 1000).sin()

    got = list(sampling.trajectory(predict, ours("ddim", "v_prediction"), SHAPE, [5], steps, CPU))
    ddim = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    ddim.set_timesteps(steps)
    x = got[0]
    for number, t in enumerate(ddim.timesteps, start=1):
        x = ddim.step(predict(x, t), t, x).prev_sample
        torch.testing.assert_close(got[number], x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [10, 50])
def test_ddpm_has_the_mean_and_the_variance_of_the_posterior(steps: int) -> None:
    """Of first order with noise the family is ancestral sampling (Ho et al. 2020, equation 7)."""
    scheduler = ours("ddpm", "v_prediction")
    sampling.set_timesteps(scheduler, steps)
    here, there = (int(t) for t in scheduler.timesteps[3:5])
    data, x = torch.full((1, 4, 64, 64), 0.7), torch.full((1, 4, 64, 64), -0.4)
    noise = (x - ALPHA[here] * data) / SIGMA[here]
    scheduler.set_begin_index(3)
    generator = torch.Generator().manual_seed(0)
    v = ALPHA[here] * noise - SIGMA[here] * data
    got = scheduler.step(v, scheduler.timesteps[3], x, generator=generator).prev_sample
    ratio = (ALPHA[here] / ALPHA[there]) ** 2  # abar of the jump
    mean = (
        ALPHA[there] * (1 - ratio) / SIGMA[here] ** 2 * data
        + ratio.sqrt() * SIGMA[there] ** 2 / SIGMA[here] ** 2 * x
    )
    deviation = ((1 - ratio) * SIGMA[there] ** 2 / SIGMA[here] ** 2).sqrt()
    assert (got - mean).mean().item() == pytest.approx(0, abs=4 * deviation.item() / 128)
    assert (got - mean).std().item() == pytest.approx(deviation.item(), rel=0.03)


@SAMPLERS
@BOTH
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_step_is_diffusers_own(sampler: str, prediction_type: str, steps: int) -> None:
    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x * 1.3 + t / 1000).sin()

    seeds = [11, 3, 4_000_000_000]
    got = list(
        sampling.trajectory(predict, ours(sampler, prediction_type), SHAPE, seeds, steps, CPU)
    )
    assert len(got) == steps + 1
    for image, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        scheduler = plain_scheduler(sampler, prediction_type)
        scheduler.set_timesteps(steps)
        x = torch.randn((1, *SHAPE), generator=generator)
        assert torch.equal(got[0][image], x[0])
        for number, t in enumerate(scheduler.timesteps, start=1):
            options = {"generator": generator} if sampler == "ddpm" else {}
            x = scheduler.step(predict(x, t), t, x, **options).prev_sample
            assert torch.equal(got[number][image], x[0]), f"step {number}"


# --- guidance ---


class Denoiser:
    """A denoiser whose output is the mean of its text; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        assert len(latents) == len(timesteps) == len(text)
        self.calls.append((latents, timesteps, text))
        return text.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(latents) + latents


@given(
    scale=st.floats(-10, 20),
    texts=st.lists(st.floats(-5, 5), min_size=1, max_size=4),
    null=st.floats(-5, 5),
    t=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_guidance_is_its_formula(scale: float, texts: list[float], null: float, t: int) -> None:
    denoiser = Denoiser()
    text = torch.tensor(texts).view(-1, 1, 1).expand(-1, 3, 5)
    predict = sampling.guide(denoiser, text, torch.full((1, 3, 5), null), scale)
    latents = torch.randn(len(texts), *SHAPE)
    got = predict(latents, t)
    want = null + scale * (torch.tensor(texts) - null)
    want = want.view(-1, 1, 1, 1) + latents
    torch.testing.assert_close(got, want.expand_as(got), rtol=1e-4, atol=1e-3)
    assert all((times == t).all() for _, times, _ in denoiser.calls)


@pytest.mark.parametrize(("scale", "size"), [(0.0, 3), (1.0, 3), (3.0, 6), (0.5, 6), (-1.0, 6)])
def test_each_step_calls_the_denoiser_once_and_doubles_only_where_needed(
    scale: float, size: int
) -> None:
    denoiser = Denoiser()
    text, null = torch.ones(3, 2, 5), torch.zeros(1, 2, 5)
    scheduler = ours("ddim", "epsilon")
    sample(denoiser, scheduler, text, null, scale, [1, 2, 3], 7, SHAPE)
    assert [len(latents) for latents, _, _ in denoiser.calls] == [size] * 7
    texts = {tuple(text.mean(dim=(1, 2)).tolist()) for _, _, text in denoiser.calls}
    want = {0.0: (0.0,) * 3, 1.0: (1.0,) * 3}.get(scale, (0.0,) * 3 + (1.0,) * 3)
    assert texts == {want}
    for latents, times, _ in denoiser.calls:
        assert times.shape == (size,)
        if size == 6:
            assert torch.equal(latents[:3], latents[3:])
    assert [int(times[0]) for _, times, _ in denoiser.calls] == scheduler.timesteps.tolist()


# --- one seed an image ---


def run(sampler: str, seeds: list[int], denoiser: Callable, text: torch.Tensor) -> torch.Tensor:
    null = torch.zeros(1, *text.shape[1:])
    scheduler = ours(sampler, "v_prediction")
    return sample(denoiser, scheduler, text, null, 2.0, seeds, 5, (4, 8, 8))


@SAMPLERS
@given(seeds=st.lists(st.integers(0, sampling.MAX_SEED), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_an_image_depends_on_its_seed_alone(sampler: str, seeds: list[int]) -> None:
    text = torch.linspace(-1, 1, len(seeds)).view(-1, 1, 1).expand(-1, 2, 3)

    def denoiser(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return (x + text.sum(dim=(1, 2)).view(-1, 1, 1, 1)).tanh()

    together = run(sampler, seeds, denoiser, text)
    assert together.shape == (len(seeds), 4, 8, 8)
    for i, seed in enumerate(seeds):
        alone = run(sampler, [seed], denoiser, text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


# --- refusals ---


@SAMPLERS
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_number_of_steps_beyond_the_schedule_is_refused(sampler: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} steps"):
        next(sampling.trajectory(lambda x, t: x, ours(sampler, "epsilon"), SHAPE, [1], steps, CPU))


def test_an_unknown_sampler_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(ValueError, match="euler"):
        sampling.build_sampler("euler", objective_for("epsilon"))


# --- numbers of steps that do not divide the schedule ---


def test_unsound_numbers_of_steps_are_refused_and_the_nearest_named() -> None:
    scheduler = ours("dpm++", "v_prediction")  # timesteps repeat: a division by zero
    with pytest.raises(ValueError, match="999"):
        sampling.set_timesteps(scheduler, 1000)
    with pytest.raises(ValueError, match="60 or 62"):
        sampling.set_timesteps(ours("ddim", "v_prediction"), 61)  # diffusers adds a 62nd at -1


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 59), ("ddim", 300), ("ddpm", 600)])
@BOTH
def test_numbers_that_do_not_divide_the_schedule_are_taken(
    sampler: str, steps: int, prediction_type: str
) -> None:
    predict = gaussian_denoiser(1.0, prediction_type)
    assert final_std(ours(sampler, prediction_type), predict, steps) == pytest.approx(1, rel=0.05)


@SAMPLERS
@BOTH
def test_what_is_accepted_starts_at_noise_and_ends_at_data(
    sampler: str, prediction_type: str
) -> None:
    scheduler, accepted = ours(sampler, prediction_type), 0
    for steps in range(1, 1001, 7):
        try:
            sampling.set_timesteps(scheduler, steps)
        except ValueError:
            continue
        accepted += 1
        times = scheduler.timesteps
        assert times.min() >= 0 and len(times.unique()) == len(times) <= steps
        if steps >= 10:
            assert ALPHA[times[0]] < 0.01 and ALPHA[times[-1]] > 0.98
    assert accepted > 20
