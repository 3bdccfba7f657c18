"""One training step, from the batch to the checkpoint, and the generator that takes it.

Read `train` from top to bottom. `batches` makes the batch, `diffusion.objective` the loss, `state`
applies the gradients; `device_step` decides how the device runs `backward` and `update`.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from torch import Tensor

from config import Config, TrainingConfig
from diffusion.objective import Objective
from models.custom_unet_celeba_ldm import (
    compile_blocks,
    keep_channels_last,
    recompute_activations,
    training_operations,
    uncompile_blocks,
    use_plain_attention,
)
from models.device import (
    PRECISIONS,
    autocast,
    can_compile,
    freed_memory_kept,
    matrix_rate,
    peak_memory,
)
from models.graphs import open_recorder
from models.text_encoder import TextEncoder
from training import run_folder
from training.batches import Batch
from training.device_step import DeviceStep
from training.experiment import Experiment
from training.processes import lost_process_named
from training.saving import open_mirror, save
from training.signals import stop_on_signal
from training.state import HalfCopy, TrainingState, apply_gradients, learning_rate_at
from training.step import Step, measure, measured
from training.validation import validation_of

AHEAD = {"cuda": 4}  # threads that make batches, by device; elsewhere one, which keeps up
TIMED_STEPS = 50  # over which speed is measured


def train(experiment: Experiment) -> Iterator[Step]:
    """Train from the experiment's step to the last epoch; yields each finished step.

    Algorithm 1 of Ho et al. 2020, with the captions of Rombach et al. 2022, a tenth of them dropped
    (Ho & Salimans 2022). At a yield weights, average and logs are those after the step, and the
    caller may stop. The first Ctrl-C (or SIGTERM and the like) finishes the step, saves a
    checkpoint and then raises KeyboardInterrupt; the next call resumes from it.

    Raises:
        FloatingPointError: loss or gradient is not finite (more often than
            `training.skip_not_finite`); the last checkpoint is intact.
        RuntimeError: the device has too little memory for one sample.
        ProcessLost: another process of the run has ended.
        OSError: a checkpoint cannot be written; the last one is intact.
    """
    state, batches, accelerator = experiment.state, experiment.batches, experiment.accelerator
    settings, device, folder = experiment.config.training, experiment.device, experiment.folder
    total_steps = batches.steps_per_epoch * settings.num_epochs
    on_device = device_step(
        state,
        experiment.objective,
        experiment.text_encoder,
        settings,
        experiment.precision,
        accelerator,
    )
    validate = experiment.held_out and validation_of(
        experiment.held_out,
        state.ema_unet,
        experiment.objective,
        experiment.precision,
        accelerator,
        folder,
    )
    mirror = open_mirror(experiment)
    least_seconds = seconds_at_full_rate(
        experiment.config, device, experiment.precision, accelerator.num_processes
    )
    skipped = len({line["step"] for line in run_folder.read_lines(folder / run_folder.NOT_FINITE)})
    times = deque([time.perf_counter()], maxlen=TIMED_STEPS + 1)
    saved_at = time.monotonic()
    with stop_on_signal() as stop, freed_memory_kept(device), lost_process_named(accelerator):
        for batch in batches.ahead(state.step, total_steps, AHEAD.get(device.type, 1)):
            # Loss, backward, clip, update and average, queued on the device.
            rate = state.learning_rate = learning_rate_at(state.step, total_steps, settings)
            row = on_device(batch)
            state.step += 1
            memory = peak_memory(device)

            # Measurements, for which the host waits.
            is_overdue = time.monotonic() - saved_at > 60 * settings.save_every_minutes
            values, (is_stopping, is_overdue) = read(row, (stop.is_set(), is_overdue), accelerator)
            epoch, within = divmod(state.step, batches.steps_per_epoch)
            held_out_loss = validate(state.step, epoch) if validate and within == 0 else None
            times.append(time.perf_counter())
            seconds = (times[-1] - times[0]) / (len(times) - 1)
            step = Step(
                number=state.step,
                epoch=epoch,
                learning_rate=rate,
                validation_loss=held_out_loss,
                seconds=seconds,
                images_per_second=settings.batch_size / seconds,
                seconds_left=(total_steps - state.step) * seconds,
                memory=memory,
                matrix_share=least_seconds and least_seconds / seconds,
                **measured(values),
            )

            # Log.
            if accelerator.is_main_process:
                run_folder.append_lines(folder / run_folder.LOSSES, [step.record()])
            if not step.moved and not is_overflow(step, state.scaler):
                skipped += 1
                is_allowed = skipped <= settings.skip_not_finite
                where = folder if accelerator.is_main_process else None
                refuse(step, batches.faces(state.step - 1), where, is_allowed)

            # Save.
            is_last = state.step == total_steps
            is_due = within == 0 and epoch % settings.checkpoint_every_n_epochs == 0
            if is_due or is_last or is_stopping or is_overdue:
                save(experiment, mirror)
                saved_at = time.monotonic()
            if is_stopping:
                raise KeyboardInterrupt(f"stopped after step {state.step}; start again to resume")
            yield step
        if mirror:
            mirror.wait()


def device_step(
    state: TrainingState,
    objective: Objective,
    text_encoder: TextEncoder,
    settings: TrainingConfig,
    precision: str,
    accelerator: Accelerator,
) -> DeviceStep:
    """What the device computes in a step; see `DeviceStep` for how.

    Args:
        text_encoder: on the device of the state.
        precision: "bf16", "fp16" or "no", of `choose_precision`.
    """
    device, is_alone = state.updates.device, accelerator.num_processes == 1
    half = HalfCopy(state.unet, precision) if is_alone and precision in PRECISIONS else None
    bare = prepare_unet(half.unet if half else state.unet, settings, device, is_alone)
    unet = bare if is_alone else accelerator.prepare_model(bare)
    objective, text_encoder = objective.to(device), text_encoder.cast(precision)
    # Not where others wait in the middle of a backward pass, nor where compilation is insisted on.
    may_uncompile = is_alone and settings.compile is None and can_compile(device)

    def denoise(noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        with autocast(precision, device):
            return unet(noisy_latents, timesteps, hidden_states, return_dict=False)[0]

    def backward(batch: Batch, micro_batch_size: int) -> Tensor:
        """Set the gradients to those of the whole batch of all processes; losses (b,)."""
        for weight in state.weights:
            weight.grad = None
        if half:
            half.take_weights()
        with autocast(precision, device):
            hidden_states = text_encoder.encode(batch.tokens)  # (b, L, D)
        hidden_states = hidden_states.to(PRECISIONS.get(precision, torch.float32))
        parts = batch.split(micro_batch_size)
        losses = []
        for part, states in zip(parts, hidden_states.split(micro_batch_size), strict=True):
            # The processes add their gradients up in the backward pass of the last part.
            is_last = part is parts[-1]
            with nullcontext() if is_last else accelerator.no_sync(unet):
                loss = objective.loss(denoise, part.latents, states, part.timesteps, part.noise)
                # Several processes average their gradients; the sum over all of them is wanted.
                share = accelerator.num_processes / settings.batch_size
                state.scaler.scale((part.loss_weights * loss).sum() * share).backward()
            if half:
                half.give_gradients()
            losses.append(loss.detach())
        return torch.cat(losses)

    def update(batch: Batch, losses: Tensor) -> Tensor:
        """Clip the gradients, update weights and average; the measurements of the step."""
        norm = apply_gradients(state, settings)
        return measure(losses, batch.timesteps, objective.num_train_timesteps, norm)

    return DeviceStep(
        state,
        backward,
        update,
        settings.micro_batch_size or settings.batch_size,
        may_halve=is_alone,
        recorder=open_recorder(device) if is_alone else None,
        uncompile=partial(uncompile_blocks, bare) if may_uncompile else None,
    )


def prepare_unet(
    unet: UNet2DConditionModel, settings: TrainingConfig, device: torch.device, is_alone: bool
) -> UNet2DConditionModel:
    """Bring the UNet into the form that trains fastest on its device."""
    unet.train()
    if device.type == "cpu":
        use_plain_attention(unet)
    if is_alone:
        keep_channels_last(unet)
    if settings.gradient_checkpointing:
        recompute_activations(unet)
    if can_compile(device) if settings.compile is None else settings.compile:
        compile_blocks(unet)
    return unet


def seconds_at_full_rate(
    config: Config, device: torch.device, precision: str, processes: int
) -> float | None:
    """Seconds of a step if matrix units never waited; None where their rate is not known."""
    rate = matrix_rate(device, precision)
    if rate is None:
        return None
    return config.training.batch_size * training_operations(config.unet) / rate / processes


def read(
    row: Tensor, flags: Sequence[bool], accelerator: Accelerator
) -> tuple[list[float], list[bool]]:
    """A step's measurements summed over the processes, and which flags are set in any of them."""
    if accelerator.num_processes == 1:
        return row.tolist(), list(flags)
    shared = torch.tensor([float(flag) for flag in flags], device=row.device)
    values = accelerator.reduce(torch.cat([shared, row])).tolist()
    # The gradient and its norm are the same in all processes.
    values[-1] /= accelerator.num_processes
    return values[len(flags) :], [value > 0 for value in values[: len(flags)]]


def is_overflow(step: Step, scaler: torch.amp.GradScaler) -> bool:
    """Whether only the scaled gradient of float16 overflowed. This is expected; the scale falls."""
    return scaler.is_enabled() and abs(step.loss) < float("inf")


def refuse(step: Step, faces: np.ndarray, folder: Path | None, is_allowed: bool) -> None:
    """Record the batch of a step that was not finite.

    Args:
        faces: of the whole batch.
        folder: the run folder; None: another process records it.

    Raises:
        FloatingPointError: it is not allowed.
    """
    facts = {
        "step": step.number,
        "loss": str(step.loss),
        "gradient_norm": str(step.gradient_norm),
        "learning_rate": step.learning_rate,
        "faces": faces.tolist(),
    }
    if folder:
        run_folder.append_lines(folder / run_folder.NOT_FINITE, [facts])
    if not is_allowed:
        raise FloatingPointError(
            f"step {step.number}: the loss is {step.loss}, the gradient's norm "
            f"{step.gradient_norm} at learning rate {step.learning_rate:.2e}; the last "
            f"checkpoint is intact, and the faces of the batch are in {run_folder.NOT_FINITE}. "
            "Start again with a lower rate (--set training.learning_rate=...), look at those "
            "faces, or allow training.skip_not_finite such batches."
        )
