"""The training loop: a generator of finished steps.

`train` yields after optimiser and EMA, so the caller may stop at any yield and keep a consistent
state. What is random in a step is in `determinism`, what a run leaves behind in `run_folder`.

Shapes: B batch, C latent channels, h x w latents.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from config import Config
from custom_datasets.latent_cache import LatentSource
from diffusion import objective
from diffusion.determinism import positions_at, step_generator
from models.custom_unet_celeba_ldm import keep_channels_last, use_plain_attention
from models.device import freed_memory_kept
from models.text_encoder import TextEncoder
from training import checkpoints, run_folder
from training.caption_states import CaptionStates
from training.signals import stop_on_signal
from training.state import (
    TrainingState,
    clip_gradients,
    learning_rate_at,
    require_circumstances,
)
from training.step import Step, Stopwatch, loss_by_bin


def train(
    state: TrainingState,
    config: Config,
    latents: LatentSource,
    caption: Callable[[int, int], str],
    text_encoder: TextEncoder,
    folder: Path,
    accelerator: Accelerator,
    frozen: str = "",
) -> Iterator[Step]:
    """Train from `state.step` to the last epoch; yields each finished step and writes the run
    folder.

    The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and then raises
    KeyboardInterrupt; the same call with a resumed state goes on from there.

    Args:
        latents: posteriors of the training faces.
        caption: (position, epoch) -> that face's caption in that epoch.
        frozen: fingerprint of the frozen models, kept in the checkpoints.

    Raises:
        ValueError: fewer faces than one global batch; a run begun with other faces, frozen models
            or another number of processes; or a state that another process has overtaken.
        RunFolderInUse: another process trains into the folder.
        FloatingPointError: loss or gradient is not finite (more often than
            `training.skip_not_finite`); the last checkpoint is intact.
        OSError: a checkpoint cannot be written; the last one is intact.
    """
    run = _Run(state, config, latents, caption, text_encoder, folder, accelerator, frozen)
    if not accelerator.is_main_process:
        yield from run.steps()
        return
    with run_folder.hold(folder):
        checkpoints.remove_unfinished(folder)
        _require_newest(folder, state.step)
        run_folder.cut_losses(folder, state.step)
        yield from run.steps()


def _require_newest(folder: Path, step: int) -> None:
    """Refuse a state that another process has overtaken since it was opened."""
    opened = checkpoints.open_newest(folder)
    if opened and opened[1].step > step:
        raise ValueError(
            f"the run in {folder} has gone on to step {opened[1].step} since this state (step "
            f"{step}) was opened: open it again"
        )


@dataclass(frozen=True)
class _Batch:
    positions: np.ndarray  # (B,)
    latents: torch.Tensor  # (B, C, h, w), sampled from the posterior
    noise: torch.Tensor  # (B, C, h, w)
    timesteps: torch.Tensor  # (B,)
    captions: list[str]


@dataclass
class _Run:
    """One call of `train`."""

    state: TrainingState
    config: Config
    latents: LatentSource
    caption: Callable[[int, int], str]
    text_encoder: TextEncoder
    folder: Path
    accelerator: Accelerator
    frozen: str
    caption_states: CaptionStates = field(init=False)
    noise_scheduler: DDPMScheduler = field(init=False)
    steps_per_epoch: int = field(init=False)
    skipped: int = field(init=False)

    def __post_init__(self) -> None:
        batch, processes = self.config.training.batch_size, self.accelerator.num_processes
        self.steps_per_epoch = len(self.latents) // (batch * processes)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"{len(self.latents)} faces do not fill one batch of {batch} x {processes}"
            )
        require_circumstances(self.state, self._circumstances, self.folder)
        self.caption_states = CaptionStates(
            self.text_encoder,
            self.accelerator.mixed_precision,
            # Each process keeps its share: which faces it meets changes from epoch to epoch.
            len(self.latents) * self.config.data.caption_wordings // processes + 1,
            self.folder,
        )
        self.noise_scheduler = objective.build_noise_scheduler(self.config.diffusion)
        self.skipped = run_folder.count_not_finite(self.folder, self.state.step)

    @property
    def _circumstances(self) -> checkpoints.Circumstances:
        processes, faces = self.accelerator.num_processes, len(self.latents)
        return checkpoints.Circumstances(processes, faces, self.frozen)

    @property
    def total(self) -> int:
        return self.steps_per_epoch * self.config.training.num_epochs

    def steps(self) -> Iterator[Step]:
        settings = self.config.training
        if self.accelerator.device.type == "cpu" and not settings.fused_attention:
            use_plain_attention(self.state.unet)
        if settings.compile:
            self.state.unet.compile()
        unet, optimizer = self.accelerator.prepare(self.state.unet, self.state.optimizer)
        unet.train()
        if self.accelerator.num_processes == 1:
            keep_channels_last(self.state.unet)
        stopwatch, saved = Stopwatch(), time.monotonic()
        with stop_on_signal() as stop, freed_memory_kept():
            while self.state.step < self.total:
                step = self._one_step(unet, optimizer, stopwatch)
                stopping = self._any_process(stop.is_set())
                overdue = time.monotonic() - saved > 60 * self.config.training.save_every_minutes
                if self._is_due() or stopping or overdue:
                    self._save()
                    saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt(
                        f"stopped after step {self.state.step}; start again to go on"
                    )
                yield step
                stopwatch.resume()

    def _one_step(
        self, unet: torch.nn.Module, optimizer: torch.optim.Optimizer, stopwatch: Stopwatch
    ) -> Step:
        settings, state = self.config.training, self.state
        rate = learning_rate_at(state.step, self.total, settings)
        batch = self._draw_batch()
        losses, norm = self._backward(unet, optimizer, batch, rate)
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            optimizer.step()
            state.ema.update_parameters(state.unet)
        else:
            self._note_not_finite(batch, losses, norm, rate)
        state.step += 1
        images = settings.batch_size * self.accelerator.num_processes
        speed = images / stopwatch.lap()
        count = self.noise_scheduler.config.num_train_timesteps
        step = Step(
            number=state.step,
            epoch=state.step // self.steps_per_epoch,
            loss=losses.mean().item(),
            loss_by_timestep=loss_by_bin(losses, batch.timesteps, count),
            learning_rate=rate,
            images_per_second=speed,
            seconds_left=(self.total - state.step) * images / speed,
            skipped=not is_finite,
        )
        if self.accelerator.is_main_process:
            run_folder.append_line(self.folder / "losses.jsonl", step.record())
        return step

    def _draw_batch(self) -> _Batch:
        settings, step = self.config.training, self.state.step
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        positions = positions_at(step, len(self.latents), settings, process, processes)
        captions = [self.caption(int(i), step // self.steps_per_epoch) for i in positions]
        generator = step_generator(settings.seed, step, process)
        half = 0.5 if self.config.data.flip else 0.0
        flipped = torch.rand(len(positions), generator=generator) < half
        posterior = self.latents.fetch(positions, flipped.numpy())
        sampled = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
        noise = torch.randn(sampled.shape, generator=generator)
        timesteps = torch.randint(
            self.config.diffusion.num_train_timesteps, (len(positions),), generator=generator
        )
        kept, _ = objective.drop_captions(captions, settings.cfg_dropout_prob, generator)
        return _Batch(positions, sampled, noise, timesteps, kept)

    def _backward(
        self,
        unet: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: _Batch,
        rate: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of one batch, clipped; returns the unweighted losses (B,) on the CPU and the
        gradient's norm before clipping, over all processes.
        """
        device = self.accelerator.device
        timesteps = batch.timesteps.to(device)
        hidden_states = self.caption_states(batch.captions)
        losses = objective.loss_per_sample(
            lambda x, t, text: unet(x, t, encoder_hidden_states=text).sample,
            self.noise_scheduler,
            batch.latents.to(device, memory_format=torch.channels_last),
            hidden_states,
            timesteps,
            batch.noise.to(device),
        )
        gamma = self.config.diffusion.snr_gamma
        weights = objective.loss_weights(self.noise_scheduler, timesteps, gamma)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        self.accelerator.backward((weights * losses).mean())
        norm = clip_gradients(unet, self.config.training.max_grad_norm)
        return losses.detach().float().cpu(), norm

    def _note_not_finite(
        self, batch: _Batch, losses: torch.Tensor, norm: torch.Tensor, rate: float
    ) -> None:
        """Write down a batch that must not reach the weights; raise unless it may be skipped."""
        facts = {
            "step": self.state.step + 1,
            "loss": str(losses.mean().item()),
            "gradient_norm": str(float(norm)),
            "learning_rate": rate,
            "process": self.accelerator.process_index,
            "faces": batch.positions.tolist(),
        }
        run_folder.append_line(self.folder / run_folder.NOT_FINITE, facts)
        self.skipped += 1
        if self.skipped > self.config.training.skip_not_finite:
            raise FloatingPointError(
                f"step {facts['step']}: the loss is {facts['loss']}, the gradient's norm "
                f"{facts['gradient_norm']} at learning rate {rate:.2e}; the last checkpoint is "
                f"intact, and the faces of the batch are in {run_folder.NOT_FINITE}. Lower "
                "training.learning_rate, look at those faces, or allow "
                "training.skip_not_finite such batches."
            )

    def _is_due(self) -> bool:
        epoch, within = divmod(self.state.step, self.steps_per_epoch)
        wanted = within == 0 and epoch % self.config.training.checkpoint_every_n_epochs == 0
        return wanted or self.state.step == self.total

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state, settings = self.state, self.config.training
        epoch, within = divmod(state.step, self.steps_per_epoch)
        path = checkpoints.checkpoint_path(self.folder, epoch, state.step, within == 0)
        parts = (state.unet, state.ema, state.optimizer)
        checkpoint = checkpoints.Checkpoint(
            self.config,
            epoch,
            state.step,
            self._circumstances,
            *(part.state_dict() for part in parts),
        )
        run_folder.sync_losses(self.folder)
        checkpoints.save_checkpoint(path, checkpoint)
        best = checkpoints.best_epoch(self.folder, self.steps_per_epoch)
        checkpoints.prune_checkpoints(path, settings.keep_last, settings.keep_every_n_epochs, best)

    def _any_process(self, flag: bool) -> bool:
        """Whether any process says so: all must stop at the same step, or the others would wait."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum").item() > 0)
