"""From noise to latents: classifier-free guidance over diffusers' schedulers.

Knows tensors and callables only. One seed belongs to one image, whatever the batch: image i starts
from the noise of seed i and, where the sampler is stochastic, goes on with that seed's own
generator.

Shapes: B batch, C latent channels, h x w latents, L caption tokens, D text width.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from config import DiffusionConfig
from diffusion.objective import Denoiser

SAMPLERS = ("ddpm", "ddim", "dpm++")
Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (latents, t) -> prediction
# log(alpha_t / sigma_t) below which DPM-Solver++ does not start when the noise is predicted. At t =
# 999 of squaredcos_cap_v2 alpha is 5e-5, and x_0 = (x - sigma eps) / alpha magnifies an error of
# eps 20,000 times; at -5.1 it is 160 times, and the start is still indistinguishable from noise.
LAMBDA_MIN = -5.1
LEAST_COVERED = 0.95  # share of the timesteps that an even spacing must span to begin at noise


def build_sampler(name: str, config: DiffusionConfig) -> SchedulerMixin:
    """The scheduler that samples a model trained under `config`; never clips latents.

    With epsilon prediction DDIM takes "leading" timesteps (its first is 1001 - 1000/steps), because
    at t = 999 any error of the model is magnified beyond repair; with v-prediction it starts at
    pure noise.

    Raises:
        ValueError: unknown sampler.
    """
    common = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
    }
    predicts_noise = config.prediction_type == "epsilon"
    if name == "ddpm":
        return DDPMScheduler(**common, clip_sample=False, timestep_spacing="leading")
    if name == "ddim":
        spacing = "leading" if predicts_noise else "trailing"
        # An offset of 1 is what StableDiffusionPipeline would put in: an export samples alike.
        return DDIMScheduler(**common, clip_sample=False, timestep_spacing=spacing, steps_offset=1)
    if name == "dpm++":
        lambda_min = LAMBDA_MIN if predicts_noise else -float("inf")
        return DPMSolverMultistepScheduler(**common, lambda_min_clipped=lambda_min)
    raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")


def guide(
    denoiser: Denoiser,
    hidden_states: torch.Tensor,
    null_hidden_states: torch.Tensor,
    guidance_scale: float,
    interval: tuple[float, float] | None = None,
) -> Predictor:
    """Bind text and guidance to a denoiser: (latents (B, C, h, w), t) -> guided prediction.

    uncond + s (cond - uncond), Ho & Salimans 2022 with s = 1 + w: s = 1 is the conditional model, s
    = 0 the unconditional one. Both halves run in one batch; where s leaves only one of them, only
    that one runs.

    Args:
        hidden_states: (B, L, D).
        null_hidden_states: (1, L, D) or (B, L, D): the empty caption, or a negative prompt.
        interval: timesteps (low, high) in which guidance acts, low <= t <= high; outside, the
            conditional prediction alone is made, at half the cost (Kynkäänniemi et al. 2024).
            None: always.
    """
    null = null_hidden_states.expand(len(hidden_states), -1, -1)
    if guidance_scale in (0, 1):
        text = hidden_states if guidance_scale == 1 else null
        return lambda latents, timestep: denoiser(latents, timestep.expand(len(latents)), text)
    both = torch.cat([null, hidden_states])  # (2B, L, D)

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if interval is not None and not interval[0] <= int(timestep) <= interval[1]:
            return denoiser(latents, timestep.expand(len(latents)), hidden_states)
        doubled = torch.cat([latents, latents])
        unconditional, conditional = denoiser(doubled, timestep.expand(len(doubled)), both).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return predict


def set_timesteps(scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
    """Set the scheduler's own timesteps for so many steps, where they are sound.

    diffusers' DDIM steps from t to t - 1000 // steps, whatever the next timestep is; where that
    drifts far from its timesteps, noise is left over. "Leading" timesteps are 1000 // steps apart
    too, so that 600 steps would take pure noise for t = 599. For some numbers DDIM ends at t = -1,
    and DPM-Solver++ divides by zero where a timestep repeats.

    Raises:
        ValueError: such a number; names the nearest ones that will do.
    """
    count = scheduler.config.num_train_timesteps
    if not 1 <= steps <= count:
        raise ValueError(f"{steps} steps: from 1 to {count} are needed")
    if not _is_sound(scheduler, steps):
        around = (range(steps, 0, -1), range(steps, count + 1))
        found = [next((n for n in side if _is_sound(scheduler, n)), None) for side in around]
        use = " or ".join(str(number) for number in found if number)
        raise ValueError(f"{steps} steps do not suit {type(scheduler).__name__}: use {use}")
    scheduler.set_timesteps(steps, device=device)


def _is_sound(scheduler: SchedulerMixin, steps: int) -> bool:
    scheduler.set_timesteps(steps)
    timesteps, count = scheduler.timesteps, scheduler.config.num_train_timesteps
    if timesteps.min() < 0 or timesteps.max() >= count:
        return False
    if len(timesteps) > steps or len(timesteps.unique()) < len(timesteps):
        return False
    is_even = isinstance(scheduler, DDPMScheduler | DDIMScheduler)
    return not is_even or steps * (count // steps) >= LEAST_COVERED * count


def trajectory(
    predict: Predictor,
    scheduler: SchedulerMixin,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Yield the latents (B, C, h, w) before the first and after every denoising step.

    Args:
        predict: (latents, t) -> the model's prediction, guided or not.
        shape: (C, h, w) of one latent.
        seeds: one an image; their number is B.

    Raises:
        ValueError: no seeds, or a number of steps that the scheduler cannot take.
    """
    if not seeds:
        raise ValueError("0 seeds: one an image is needed")
    # On the CPU, so that a seed means the same noise on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    set_timesteps(scheduler, steps, device)
    latents = randn_tensor((len(seeds), *shape), generator=generators, device=device)
    latents = latents * scheduler.init_noise_sigma
    options = {} if isinstance(scheduler, DDIMScheduler) else {"generator": generators}
    yield latents
    for timestep in scheduler.timesteps:
        prediction = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction.float(), timestep, latents, **options).prev_sample
        yield latents


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: SchedulerMixin,
    hidden_states: torch.Tensor,
    null_hidden_states: torch.Tensor,
    guidance_scale: float,
    seeds: Sequence[int],
    steps: int,
    shape: Sequence[int],
) -> torch.Tensor:
    """Guided samples, latents (B, C, h, w), one for each seed and its hidden states (B, L, D).

    Raises:
        ValueError: the numbers of seeds and captions differ.
    """
    if len(seeds) != len(hidden_states):
        raise ValueError(
            f"{len(hidden_states)} captions for {len(seeds)} seeds; one an image is needed"
        )
    predict = guide(denoiser, hidden_states, null_hidden_states, guidance_scale)
    device = hidden_states.device
    *_, latents = trajectory(predict, scheduler, shape, seeds, steps, device)
    return latents
