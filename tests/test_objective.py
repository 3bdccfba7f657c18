"""The forward process, the target, the weights and caption dropout against their closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DiffusionConfig
from diffusion import objective

TIMES = torch.tensor([0, 1, 17, 250, 500, 731, 998, 999])
SHAPE = (len(TIMES), 4, 8, 8)
TEXT = torch.zeros(len(TIMES), 3, 5)
BOTH = pytest.mark.parametrize("prediction_type", objective.PREDICTION_TYPES)


def scheduler_for(prediction_type: str) -> objective.DDPMScheduler:
    return objective.build_noise_scheduler(DiffusionConfig(prediction_type=prediction_type))


def cosine_abar(timesteps: torch.Tensor) -> torch.Tensor:
    """abar of squaredcos_cap_v2 from its definition (Nichol & Dhariwal 2021), in float64."""

    def bar(part: float) -> float:
        return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)[timesteps]


def alpha_sigma(timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    abar = cosine_abar(timesteps).view(-1, 1, 1, 1)
    return abar.sqrt().float(), (1 - abar).sqrt().float()


def data_and_noise(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def test_the_schedule_is_the_specified_cosine() -> None:
    scheduler = objective.build_noise_scheduler(DiffusionConfig())
    want = cosine_abar(torch.arange(1000))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), want, rtol=2e-4, atol=1e-9)
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.num_train_timesteps == 1000


def test_another_schedule_of_the_config_is_used() -> None:
    config = DiffusionConfig(num_train_timesteps=10, beta_schedule="linear")
    betas = objective.build_noise_scheduler(config).betas
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 10))


@BOTH
def test_the_denoiser_receives_the_noisy_latents_their_times_and_the_text(
    prediction_type: str,
) -> None:
    received = []

    def spy(*inputs: torch.Tensor) -> torch.Tensor:
        received.extend(inputs)
        return torch.zeros(SHAPE)

    latents, noise = data_and_noise()
    text = torch.randn(len(TIMES), 3, 5)
    objective.loss_per_sample(spy, scheduler_for(prediction_type), latents, text, TIMES, noise)
    alpha, sigma = alpha_sigma(TIMES)
    torch.testing.assert_close(received[0], alpha * latents + sigma * noise, rtol=1e-4, atol=1e-5)
    assert torch.equal(received[1], TIMES)
    assert torch.equal(received[2], text)


def test_noise_is_never_clipped() -> None:
    latents, noise = torch.full(SHAPE, 30.0), torch.full(SHAPE, -20.0)
    scheduler = scheduler_for("epsilon")
    alpha, sigma = alpha_sigma(TIMES)
    noisy = scheduler.add_noise(latents, noise, TIMES)
    torch.testing.assert_close(noisy, alpha * latents + sigma * noise, rtol=1e-4, atol=1e-4)
    stepped = scheduler.step(torch.zeros(1, 4, 8, 8), 0, torch.full((1, 4, 8, 8), 30.0))
    assert stepped.pred_original_sample.min() > 29
    assert not scheduler.config.clip_sample and not scheduler.config.thresholding


@given(t=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_signal_to_noise(t: int) -> None:
    times = torch.tensor([t])
    snr = objective.signal_to_noise(scheduler_for("epsilon"), times)
    abar = cosine_abar(times)
    assert snr.shape == (1,)
    # abar is 0.99996 at t = 0 and 2e-9 at t = 999: float32 keeps three digits of each ratio.
    torch.testing.assert_close(snr.double(), abar / (1 - abar), rtol=3e-3, atol=0)


def test_epsilon_is_the_noise_itself() -> None:
    latents, noise = data_and_noise()
    target = objective.training_target(scheduler_for("epsilon"), latents, noise, TIMES)
    assert torch.equal(target, noise)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_v_is_its_definition_and_gives_back_both_parts(seed: int) -> None:
    scheduler = scheduler_for("v_prediction")
    latents, noise = data_and_noise(seed)
    alpha, sigma = alpha_sigma(TIMES)
    noisy = scheduler.add_noise(latents, noise, TIMES)
    v = objective.training_target(scheduler, latents, noise, TIMES)
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(v, alpha * noise - sigma * latents, **close)
    torch.testing.assert_close(alpha * noisy - sigma * v, latents, **close)
    torch.testing.assert_close(sigma * noisy + alpha * v, noise, **close)


@BOTH
def test_a_perfect_denoiser_loses_nothing_and_a_zero_one_the_mean_square(
    prediction_type: str,
) -> None:
    scheduler = scheduler_for(prediction_type)
    latents, noise = data_and_noise()
    target = objective.training_target(scheduler, latents, noise, TIMES)

    def loss_of(prediction: torch.Tensor) -> torch.Tensor:
        inputs = (scheduler, latents, TEXT, TIMES, noise)
        return objective.loss_per_sample(lambda x, t, text: prediction, *inputs)

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
    scheduler = scheduler_for("epsilon")
    latents, noise = torch.zeros(SHAPE), torch.ones(SHAPE)
    low = torch.full(SHAPE, 1 + 2**-7, dtype=torch.bfloat16)
    inputs = (scheduler, latents, TEXT, TIMES, noise)
    loss = objective.loss_per_sample(lambda x, t, text: low, *inputs)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.full((len(TIMES),), 2.0**-14))


@BOTH
def test_without_gamma_every_sample_weighs_one(prediction_type: str) -> None:
    weights = objective.loss_weights(scheduler_for(prediction_type), TIMES, None)
    assert torch.equal(weights, torch.ones(len(TIMES)))


@given(gamma=st.floats(0.1, 100), prediction_type=st.sampled_from(objective.PREDICTION_TYPES))
@settings(max_examples=40, deadline=None)
def test_min_snr_weights(gamma: float, prediction_type: str) -> None:
    times = torch.arange(1000)
    weights = objective.loss_weights(scheduler_for(prediction_type), times, gamma)
    abar = cosine_abar(times)
    snr = abar / (1 - abar)
    divisor = snr if prediction_type == "epsilon" else snr + 1
    want = snr.clamp(max=gamma) / divisor
    assert torch.isfinite(weights).all() and (weights > 0).all()
    torch.testing.assert_close(weights.double(), want, rtol=3e-3, atol=0)


def test_both_predictions_weigh_the_same_error_of_the_image_alike() -> None:
    """weight * error = min(SNR, gamma) * (error of x_0)^2, also at t = 0 and t = 999."""
    latents, noise = data_and_noise()
    alpha, sigma = alpha_sigma(TIMES)
    error = 0.1
    weighted = {}
    # An x_0 that is wrong by `error` is an eps wrong by -alpha/sigma and a v by -1/sigma of it.
    for prediction_type, factor in (("epsilon", alpha / sigma), ("v_prediction", 1 / sigma)):
        scheduler = scheduler_for(prediction_type)
        target = objective.training_target(scheduler, latents, noise, TIMES)
        wrong = (target.double() - error * factor.double()).flatten(1)
        loss = (wrong - target.double().flatten(1)).square().mean(1)
        weighted[prediction_type] = objective.loss_weights(scheduler, TIMES, 5.0).double() * loss
    abar = cosine_abar(TIMES)
    want = (abar / (1 - abar)).clamp(max=5.0) * error**2
    torch.testing.assert_close(weighted["epsilon"], want, rtol=5e-3, atol=0)
    torch.testing.assert_close(weighted["v_prediction"], want, rtol=5e-3, atol=0)


@pytest.mark.parametrize("prediction_type", ["sample", "v", ""])
def test_an_unknown_prediction_type_is_refused(prediction_type: str) -> None:
    with pytest.raises(ValueError, match="prediction_type"):
        scheduler_for(prediction_type)


@given(seed=st.integers(0, 2**31), probability=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_captions_are_dropped_at_the_asked_rate_and_independently(
    seed: int, probability: float
) -> None:
    count = 4000
    captions = [f"face {i}" for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    kept, dropped = objective.drop_captions(captions, probability, generator)
    spread = math.sqrt(probability * (1 - probability) / count)
    assert abs(dropped.float().mean().item() - probability) < 5.5 * spread
    assert dropped.shape == (count,) and dropped.dtype == torch.bool
    assert kept == ["" if d else c for c, d in zip(captions, dropped.tolist(), strict=True)]
    both = (dropped[1:] & dropped[:-1]).float().mean().item()
    assert abs(both - probability**2) < 0.06


@given(seed=st.integers(0, 2**31), count=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_probability_0_drops_none_and_1_drops_all(seed: int, count: int) -> None:
    captions = [f"face {i}" for i in range(count)]
    generator = torch.Generator().manual_seed(seed)
    kept, dropped = objective.drop_captions(captions, 0.0, generator)
    assert kept == captions and not dropped.any()
    kept, dropped = objective.drop_captions(captions, 1.0, generator)
    assert kept == [""] * count and dropped.all()


def test_the_generator_alone_decides_what_is_dropped() -> None:
    captions = [f"face {i}" for i in range(64)]

    def draw(seed: int) -> list[str]:
        return objective.drop_captions(captions, 0.5, torch.Generator().manual_seed(seed))[0]

    torch.manual_seed(0)
    first = draw(3)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert draw(3) == first
    assert draw(4) != first
    torch.manual_seed(0)
    draw(3)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone
    assert captions == [f"face {i}" for i in range(64)]
