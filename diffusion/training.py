"""The training loop: a generator of finished steps.

`train` yields after optimiser and EMA, so the caller may stop at any yield and keep a consistent
state. Everything random in a step (posterior, noise, timesteps, mirrored faces, dropped captions)
comes from one generator seeded by (seed, step, process), and the order of the faces from (seed,
epoch). There is no random state to restore: a run that goes on from a checkpoint continues as if it
had never stopped.
"""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch.optim.swa_utils import AveragedModel

from config import Config, TrainingConfig
from custom_datasets.latent_cache import LatentSource
from diffusion import objective, run_folder
from models.text_encoder import TextEncoder

TIMESTEP_BINS = 10


@dataclass(frozen=True)
class Step:
    """One finished optimiser step."""

    number: int  # counts from 1 over the whole run
    epoch: int  # finished epochs after this step
    loss: float  # unweighted mean squared error of the batch
    loss_by_timestep: tuple[
        float | None, ...
    ]  # the same in ten equal bins of t; None: no sample fell in it
    learning_rate: float
    images_per_second: float
    seconds_left: float

    def line(self) -> str:
        """The step as one line of a log."""
        left = str(timedelta(seconds=round(self.seconds_left)))
        return (
            f"step {self.number:6d} | epoch {self.epoch:3d} | loss {self.loss:.4f} | "
            f"lr {self.learning_rate:.1e} | {self.images_per_second:.0f} images/s | {left} left"
        )


@dataclass
class TrainingState:
    """What training changes: live weights, their moving average, the optimiser, and the steps
    taken.
    """

    unet: UNet2DConditionModel
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0

    @property
    def ema_unet(self) -> UNet2DConditionModel:
        """The averaged model, which is the one to sample from."""
        return self.ema.module


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant or a cosine to zero; a function of the step alone.

    Raises:
        ValueError: unknown `lr_decay`.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.lr_decay == "constant":
        return config.learning_rate * warmup
    if config.lr_decay == "cosine":
        return config.learning_rate * warmup * _cosine(step / total_steps)
    raise ValueError(f"unknown lr_decay {config.lr_decay!r}: 'constant' or 'cosine'")


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def ema_rule(decay: float) -> Callable[..., None]:
    """Moving average whose decay grows as 1 - (1 + n)^-3/4 up to `decay`, so that short runs are
    not blurred.
    """

    def update(
        averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor
    ) -> None:
        weight = max((1 + float(count)) ** -0.75, 1 - decay)
        torch._foreach_lerp_(averaged, current, weight)

    return update


def new_state(unet: UNet2DConditionModel, config: TrainingConfig) -> TrainingState:
    """The state before the first step."""
    ema = AveragedModel(unet, multi_avg_fn=torch.no_grad()(ema_rule(config.ema_decay)))
    ema.module.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        unet.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return TrainingState(unet, ema, optimizer)


def resume(state: TrainingState, config: Config, folder: Path) -> TrainingState:
    """Go on from the newest checkpoint of the folder, if there is one.

    Raises:
        ValueError: it was trained with other settings; names them.
    """
    path = run_folder.newest_checkpoint(folder)
    if path is None:
        return state
    checkpoint = run_folder.load_checkpoint(path)
    changed = changed_settings(checkpoint.config, config)
    if changed:
        raise ValueError(
            f"{path} was trained with other settings: {'; '.join(changed)}. Restore them, or move "
            f"{folder} "
            "away to start a new run."
        )
    run_folder.load_weights(state.unet, checkpoint.unet, path)
    run_folder.load_weights(state.ema, checkpoint.ema, path)
    state.optimizer.load_state_dict(checkpoint.optimizer)
    state.step = checkpoint.step
    return state


def changed_settings(old: Config, new: Config) -> list[str]:
    """Settings that shape the weights and differ: "training.seed: 0 there, 1 here".

    Where the data lie, how often to save, how long to train and how to sample may change.
    """
    free = {"folder", "loader_workers", "cache_latents", "checkpoint_every_n_epochs", "num_epochs"}
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{section}.{name}: {value!r} there, {after[section][name]!r} here"
        for section in ("data", "models", "unet", "diffusion", "training")
        for name, value in before[section].items()
        if name not in free and value != after[section][name]
    ]


def step_generator(seed: int, step: int, process: int) -> torch.Generator:
    """The generator of everything random in one step of one process."""
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Positions of all faces in the order of this epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def positions_at(
    step: int, count: int, config: TrainingConfig, process: int, processes: int
) -> np.ndarray:
    """The faces that one process trains on at a step, (batch,); an incomplete last batch is left
    out.
    """
    per_step = config.batch_size * processes
    epoch, within = divmod(step, count // per_step)
    start = within * per_step + process * config.batch_size
    return epoch_order(count, config.seed, epoch)[start : start + config.batch_size]


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a set event, so that the step under way is finished
    first.

    A second one acts at once. Outside the main thread nothing is changed: Python delivers no
    signals there.
    """
    stop, before = threading.Event(), {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loss_by_bin(
    losses: torch.Tensor, timesteps: torch.Tensor, count: int
) -> tuple[float | None, ...]:
    """Mean of the losses (B,) in equal bins of t; None for a bin without a sample."""
    bins = timesteps * TIMESTEP_BINS // count
    return tuple(
        losses[bins == b].mean().item() if (bins == b).any() else None for b in range(TIMESTEP_BINS)
    )


def train(
    state: TrainingState,
    config: Config,
    latents: LatentSource,
    caption: Callable[[int, int], str],
    text_encoder: TextEncoder,
    folder: Path,
    accelerator: Accelerator,
) -> Iterator[Step]:
    """Train from `state.step` to the last epoch; yields each finished step and writes the run
    folder.

    The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and then raises
    KeyboardInterrupt; the same call with a resumed state goes on from there.

    Args:
        latents: posteriors of the training faces.
        caption: (position, epoch) -> that face's caption in that epoch.

    Raises:
        ValueError: fewer faces than one global batch.
        FloatingPointError: the loss is no longer finite; nothing is saved over the last checkpoint.
    """
    settings, processes = config.training, accelerator.num_processes
    steps_per_epoch = len(latents) // (settings.batch_size * processes)
    if steps_per_epoch == 0:
        raise ValueError(
            f"{len(latents)} faces do not fill one batch of {settings.batch_size} x {processes}"
        )
    total = steps_per_epoch * settings.num_epochs
    noise_scheduler = objective.build_noise_scheduler(config.diffusion)
    unet, optimizer = accelerator.prepare(state.unet, state.optimizer)
    unet.train()
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        run_folder.cut_losses(folder, state.step)
    recent = _Stopwatch()

    def save(epoch: int, epoch_is_finished: bool) -> None:
        if accelerator.is_main_process:
            path = run_folder.checkpoint_path(folder, epoch, state.step, epoch_is_finished)
            live = accelerator.unwrap_model(unet).state_dict()
            values = (
                config,
                epoch,
                state.step,
                live,
                state.ema.state_dict(),
                state.optimizer.state_dict(),
            )
            run_folder.save_checkpoint(path, run_folder.Checkpoint(*values))

    with stop_on_signal() as stop:
        while state.step < total:
            rate = learning_rate_at(state.step, total, settings)
            positions = positions_at(
                state.step, len(latents), settings, accelerator.process_index, processes
            )
            generator = step_generator(settings.seed, state.step, accelerator.process_index)
            captions = [caption(int(i), state.step // steps_per_epoch) for i in positions]
            batch = _draw_batch(latents, positions, captions, config, generator)
            losses = _optimise(
                unet, optimizer, batch, text_encoder, noise_scheduler, config, rate, accelerator
            )
            state.ema.update_parameters(accelerator.unwrap_model(unet))
            state.step += 1
            epoch, within = divmod(state.step, steps_per_epoch)
            speed = settings.batch_size * processes / recent.lap()
            left = (total - state.step) * settings.batch_size * processes / speed
            bins = loss_by_bin(losses, batch.timesteps, noise_scheduler.config.num_train_timesteps)
            step = Step(state.step, epoch, losses.mean().item(), bins, rate, speed, left)
            if accelerator.is_main_process:
                _log(folder, step)
            is_due = within == 0 and epoch % settings.checkpoint_every_n_epochs == 0
            if is_due or state.step == total or stop.is_set():
                save(epoch, epoch_is_finished=within == 0)
            if stop.is_set():
                raise KeyboardInterrupt(f"stopped after step {state.step}; start again to go on")
            yield step
            recent.resume()


@dataclass(frozen=True)
class _Batch:
    latents: torch.Tensor  # (B, C, h, w), sampled from the posterior
    noise: torch.Tensor  # (B, C, h, w)
    timesteps: torch.Tensor  # (B,)
    captions: list[str]


def _draw_batch(
    latents: LatentSource,
    positions: np.ndarray,
    captions: list[str],
    config: Config,
    generator: torch.Generator,
) -> _Batch:
    flipped = torch.rand(len(positions), generator=generator) < (0.5 if config.data.flip else 0.0)
    posterior = latents.fetch(positions, flipped.numpy())
    sampled = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
    noise = torch.randn(sampled.shape, generator=generator)
    timesteps = torch.randint(
        config.diffusion.num_train_timesteps, (len(positions),), generator=generator
    )
    kept, _ = objective.drop_captions(captions, config.training.cfg_dropout_prob, generator)
    return _Batch(sampled, noise, timesteps, kept)


def _optimise(
    unet: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: _Batch,
    text_encoder: TextEncoder,
    noise_scheduler: objective.DDPMScheduler,
    config: Config,
    rate: float,
    accelerator: Accelerator,
) -> torch.Tensor:
    """Forward, backward and one optimiser step; returns the unweighted losses (B,) on the CPU."""
    device = accelerator.device
    timesteps = batch.timesteps.to(device)
    with accelerator.autocast():
        hidden_states = text_encoder(batch.captions)
    losses = objective.loss_per_sample(
        lambda x, t, text: unet(x, t, encoder_hidden_states=text).sample,
        noise_scheduler,
        batch.latents.to(device, memory_format=torch.channels_last),
        hidden_states,
        timesteps,
        batch.noise.to(device),
    )
    weights = objective.loss_weights(noise_scheduler, timesteps, config.diffusion.snr_gamma)
    loss = (weights * losses).mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss.item()} at learning rate {rate:.2e}; the last checkpoint is "
            "intact. Lower "
            "training.learning_rate or look at the data."
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(unet.parameters(), config.training.max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient is not finite at learning rate {rate:.2e}; the last checkpoint is "
            "intact. Lower training.learning_rate or look at the data."
        )
    optimizer.step()
    return losses.detach().float().cpu()


class _Stopwatch:
    """Seconds a step, smoothed over about the last twenty; the caller's time between steps does not
    count.
    """

    def __init__(self) -> None:
        self.start, self.smoothed = time.perf_counter(), None

    def resume(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        seconds = time.perf_counter() - self.start
        self.smoothed = seconds if self.smoothed is None else 0.9 * self.smoothed + 0.1 * seconds
        return self.smoothed


def _log(folder: Path, step: Step) -> None:
    line = {
        "step": step.number,
        "epoch": step.epoch,
        "loss": round(step.loss, 6),
        "loss_by_timestep": [None if x is None else round(x, 6) for x in step.loss_by_timestep],
        "learning_rate": step.learning_rate,
        "images_per_second": round(step.images_per_second, 2),
    }
    with (folder / "losses.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
