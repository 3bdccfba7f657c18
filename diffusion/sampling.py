"""From noise to latents: guidance over diffusers' schedulers.

Knows tensors and callables only. Each image has its own seed, independent of the batch: image i
starts from the noise of seed i, and a stochastic sampler draws from that seed's generator.

Shapes: B batch, C latent channels, h x w latents, L caption tokens, D text width.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffusion.objective import Denoiser, Objective

Predictor = Callable[[Tensor, int], Tensor]  # (latents (B, C, h, w), t) -> prediction in float32
# No sampler starts below this log(alpha_t / sigma_t). At t = 999 of squaredcos_cap_v2 alpha is
# 5e-5, and x_0 = (x - sigma eps) / alpha magnifies an error of eps 20,000 times; at -5.1 (t = 995)
# it is 160 times, and the start is still indistinguishable from noise.
LAMBDA_MIN = -5.1
MAX_SEED = 2**32 - 1  # a CPU generator of torch ignores the bits above

# Members of the DPM-Solver++ family (Lu et al. 2022), as diffusers' options name them. It holds the
# older samplers: of first order it is DDIM (Song et al. 2021), and with noise DDPM's ancestral
# sampling (Ho et al. 2020, posterior variance). diffusers' own class for DDIM takes evenly spaced
# timesteps alone.
SAMPLERS = {
    "ddpm": {"algorithm_type": "sde-dpmsolver++", "solver_order": 1},
    "ddim": {"algorithm_type": "dpmsolver++", "solver_order": 1},
    "dpm++": {"algorithm_type": "dpmsolver++", "solver_order": 2},
}


def build_sampler(name: str, objective: Objective) -> SchedulerMixin:
    """The scheduler that samples a model trained under an objective; it does not clip x_0.

    Its timesteps are those of `spread_timesteps`. The options of spacing and clipping serve who
    opens an export and names a number of steps instead.

    Raises:
        ValueError: unknown sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    return DPMSolverMultistepScheduler(
        **objective.scheduler_options,
        **SAMPLERS[name],
        timestep_spacing="trailing",
        lambda_min_clipped=LAMBDA_MIN,
        steps_offset=1,  # StableDiffusionPipeline's value, so that an export samples alike
    )


def guide(
    denoiser: Denoiser,
    hidden_states: Tensor,
    null_hidden_states: Tensor,
    guidance_scale: float,
    guidance_below: int | None = None,
    perturbed: Denoiser | None = None,
    perturbed_scale: float = 0.0,
    perturbed_below: int | None = None,
) -> Predictor:
    """Bind text and guidance to a denoiser: (latents (B, C, h, w), t) -> guided prediction.

    uncond + s (cond - uncond), Ho & Salimans 2022 with s = 1 + w: s = 1 is the conditional model, s
    = 0 the unconditional one. Both halves run in one batch; where s leaves only one of them, only
    that one runs. The combination is computed in float32. This does not undo the rounding of the
    two predictions: under autocast to bfloat16 each has 8 significant bits when it arrives here.

    Args:
        hidden_states: (B, L, D).
        null_hidden_states: (1, L, D) or (B, L, D): the empty caption, or a negative prompt.
        guidance_below: timesteps from this on, the noisiest, have no guidance (s = 1): there it
            exaggerates what is asked for, and bleaches or darkens faces (Kynkaanniemi et al. 2024,
            "Applying guidance in a limited interval"). None: all are guided.
        perturbed: a denoiser without self-attention. Its prediction of the same text knows no
            layout, so a way from it leads to faces of one piece (Ahn et al. 2024, "Self-Rectifying
            Diffusion Sampling with Perturbed-Attention Guidance"): scale (cond - perturbed) is
            added. It runs alone, where it is used.
        perturbed_below: only timesteps below this; None: all.
    """
    null = null_hidden_states.expand(len(hidden_states), -1, -1)
    both = torch.cat([null, hidden_states])  # (2B, L, D)

    def predict_once(model: Denoiser, latents: Tensor, timestep: int, text: Tensor) -> Tensor:
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        return model(latents, timesteps, text).float()

    def predict(latents: Tensor, timestep: int) -> Tensor:
        is_guided = guidance_below is None or timestep < guidance_below
        scale = guidance_scale if is_guided else min(guidance_scale, 1)
        text = null if scale == 0 else hidden_states
        if scale in (0, 1):
            guided = predicted = predict_once(denoiser, latents, timestep, text)
        else:
            prediction = predict_once(denoiser, torch.cat([latents, latents]), timestep, both)
            unconditional, predicted = prediction.chunk(2)
            guided = unconditional + scale * (predicted - unconditional)
        if perturbed and (perturbed_below is None or timestep < perturbed_below):
            without = predict_once(perturbed, latents, timestep, text)
            guided = guided + perturbed_scale * (predicted - without)
        return guided

    return predict


def spread_timesteps(scheduler: SchedulerMixin, steps: int) -> list[int]:
    """Timesteps from noise to data, half spread evenly over t, half over log(alpha_t / sigma_t).

    Where the data has variance v in some direction of the latents, its value is decided at
    alpha^2 v = sigma^2. That of a picture's mean colour is large: over h x w positions their common
    part adds up. Even timesteps of a cosine schedule pass that point within one or two of 20 steps,
    and even a perfect denoiser then gives a fifth less variance at v = 26 (`laptop`) and two fifths
    less at v = 100: paler pictures, of more equal brightness. Steps that are even in
    log(alpha / sigma) keep every variance, but leave few to the middle, where a face is formed.

    Returns:
        At most `steps`, none of them twice, as DPM-Solver++ would divide by zero.

    Raises:
        ValueError: fewer than one step, or more than the training's.
    """
    count = scheduler.config.num_train_timesteps
    if not 1 <= steps <= count:
        raise ValueError(f"{steps} steps: from 1 to {count} are needed")
    levels = scheduler.lambda_t.double().numpy()  # log(alpha_t / sigma_t), (T,), falls with t
    first = int((levels >= LAMBDA_MIN).nonzero()[0][-1])
    last = min(count // (2 * steps), first // 2)  # from there to x_0 at once
    times = np.arange(first, last - 1, -1)  # all that there are, from noise to data
    in_time, in_level = (first - times) / (first - last), levels[times] - levels[first]
    passed = (in_time + in_level / in_level[-1]) / 2  # from 0 to 1
    number = np.arange(min(steps, len(times)))
    wanted = np.interp(np.linspace(0, 1, len(number)), passed, times).round().astype(int)
    wanted = np.minimum.accumulate(wanted + number) - number  # each below the one before
    return np.maximum(wanted, last + number[::-1]).tolist()  # with room for those that follow


def set_timesteps(scheduler: SchedulerMixin, steps: int) -> None:
    """Set the scheduler's timesteps to those of `spread_timesteps`.

    They stay on the CPU, so that reading one never waits for a device.
    """
    scheduler.set_timesteps(timesteps=spread_timesteps(scheduler, steps))


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator a seed, on the CPU, so that a seed means the same noise on every device.

    Args:
        seeds: from 0 to `MAX_SEED`.
    """
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def trajectory(
    predict: Predictor,
    scheduler: SchedulerMixin,
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the latents (B, C, h, w) before the first and after every denoising step.

    Args:
        predict: (latents, t) -> the model's prediction, guided or not.
        shape: (C, h, w) of one latent.
        seeds: one an image; their number is B.

    Raises:
        ValueError: no seeds, or a number of steps that the scheduler cannot take.
    """
    if not len(seeds):
        raise ValueError("0 seeds: one an image is needed")
    set_timesteps(scheduler, steps)
    generators = seeded(seeds)
    latents = randn_tensor((len(seeds), *shape), generator=generators, device=device)
    latents = latents * scheduler.init_noise_sigma  # (B, C, h, w)
    yield latents
    for timestep in scheduler.timesteps:
        prediction = predict(latents, int(timestep))
        latents = scheduler.step(prediction, timestep, latents, generator=generators).prev_sample
        yield latents


@torch.no_grad()
def renoise(
    predict: Predictor,
    scheduler: SchedulerMixin,
    latents: Tensor,
    seeds: Sequence[int],
    steps: int,
    strength: float,
    free: Tensor | None = None,
) -> Tensor:
    """Latents (B, C, h, w), noised and denoised over the last `strength` of the steps.

    SDEdit (Meng et al. 2022) for the whole picture; where `free` is False the given latents are
    restored at every step, at its noise level (Lugmayr et al. 2022, RePaint, without its
    resampling).

    Args:
        strength: in (0, 1], the share of the steps that is taken.
        free: bool, broadcastable to the latents; where it is False they end as they were.
    """
    set_timesteps(scheduler, steps)
    steps = len(scheduler.timesteps)
    begin = steps - max(1, round(steps * strength))
    scheduler.set_begin_index(begin)
    generators = seeded(seeds)
    noise = randn_tensor(latents.shape, generator=generators, device=latents.device)
    timesteps = scheduler.timesteps[begin:]
    current = scheduler.add_noise(latents, noise, timesteps[:1])
    for number, timestep in enumerate(timesteps, start=1):
        prediction = predict(current, int(timestep))
        current = scheduler.step(prediction, timestep, current, generator=generators).prev_sample
        if free is not None:
            after = timesteps[number : number + 1]
            given = scheduler.add_noise(latents, noise, after) if len(after) else latents
            current = torch.where(free, current, given)
    return current
