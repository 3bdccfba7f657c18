"""One training step, from the batch to the checkpoint, and the generator that takes it.

Read `train` from top to bottom, then `compute`, which holds what the device does. `batches` makes
the batch and `diffusion.objective` is the loss. `device_step` only decides how the device runs it.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from config import TrainingConfig
from diffusion.objective import Objective
from models.custom_unet_celeba_ldm import uncompile_blocks
from models.device import PRECISIONS, autocast, empty_cache, freed_memory_kept, peak_memory
from models.graphs import open_recorder
from models.text_encoder import TextEncoder
from training import checkpoints, run_folder
from training.batches import Batch
from training.device_step import DeviceStep, HalfCopy, prepare_unet, seconds_at_full_rate
from training.experiment import Experiment
from training.processes import stop_on_signal
from training.state import TrainingState
from training.tracking import Step, measure, measured
from training.validation import validation_of

AHEAD = {"cuda": 4}  # threads that make batches, by device; elsewhere one, which keeps up
TIMED_STEPS = 50  # over which speed is measured
MAX_GRAD_NORM = 1.0  # at which gradients are clipped
EMA_DECAY = 0.9999  # of the average, at most


def train(experiment: Experiment) -> Iterator[Step]:
    """Train from the experiment's step to the last epoch; yields each finished step.

    Algorithm 1 of Ho et al. 2020, conditioned on captions by cross-attention (Rombach et al. 2022),
    of which a share is dropped (Ho & Salimans 2022). At a yield weights, average and logs are those
    after the step, and the caller may stop. The first Ctrl-C (or SIGTERM and the like) finishes the
    step, saves a checkpoint, yields and then raises KeyboardInterrupt; the next call resumes from
    it.

    Raises:
        FloatingPointError: loss or gradient is not finite (more often than
            `training.skip_not_finite`); the last checkpoint is intact.
        RuntimeError: the device has too little memory for one sample.
        OSError: a checkpoint cannot be written; the last one is intact.
    """
    state, batches, accelerator = experiment.state, experiment.batches, experiment.accelerator
    config, device, folder = experiment.config, experiment.device, experiment.folder
    settings, precision = config.training, experiment.precision
    is_main = accelerator.is_main_process
    total_steps = batches.steps_per_epoch * settings.num_epochs
    empty_cache(device)  # which the encoder of the latents has filled
    on_device = compute(
        state, experiment.objective, experiment.text_encoder, settings, precision, accelerator
    )
    validate = experiment.held_out and validation_of(
        experiment.held_out, state.ema_unet, experiment.objective, precision
    )
    if validate and device.type == "cuda":
        validate()  # takes its memory first: micro-batches shrink to what is left, this cannot
    full_rate = seconds_at_full_rate(config, device, precision, accelerator.num_processes)
    skipped = len({line["step"] for line in run_folder.read_lines(folder / run_folder.NOT_FINITE)})
    times = deque([time.perf_counter()], maxlen=TIMED_STEPS + 1)
    saved_at = time.monotonic()
    with stop_on_signal() as stop, freed_memory_kept(device):
        for batch in batches.ahead(state.step, total_steps, AHEAD.get(device.type, 1)):
            # Loss, backward, clip, update and average, queued on the device.
            rate = learning_rate_at(state.step, total_steps, settings)
            state.set_learning_rate(rate)
            row = on_device(batch)
            state.step += 1
            memory = peak_memory(device)

            # Measurements, for which the host waits.
            is_overdue = time.monotonic() - saved_at > 60 * settings.save_every_minutes
            values, (is_stopping, is_overdue) = read(row, (stop.is_set(), is_overdue), accelerator)
            epoch, within = divmod(state.step, batches.steps_per_epoch)
            held_out = validate() if validate and within == 0 else {}
            times.append(time.perf_counter())
            seconds = (times[-1] - times[0]) / (len(times) - 1)
            step = Step(
                number=state.step,
                epoch=epoch,
                learning_rate=rate,
                validation_loss=held_out.get("loss"),
                seconds=seconds,
                images_per_second=settings.batch_size / seconds,
                seconds_left=(total_steps - state.step) * seconds,
                memory=memory,
                matrix_share=full_rate and full_rate / seconds,
                **measured(values),
            )

            # Log.
            if is_main:
                run_folder.append_lines(folder / run_folder.LOSSES, [step.record()])
            if held_out:
                line = {"step": state.step, "epoch": epoch} | held_out
                run_folder.append_lines(folder / run_folder.VALIDATION, [line])
            # In float16 the scaled gradient alone may overflow: this is expected, the scale falls;
            # but from zero it never rises.
            is_overflow = (
                not step.moved
                and state.scaler.is_enabled()
                and math.isfinite(step.loss)
                and state.scaler.get_scale() > 0
            )
            if not step.moved and not is_overflow:
                skipped += 1
                facts = not_finite(step) | {"faces": batches.faces(state.step - 1).tolist()}
                if is_main:
                    run_folder.append_lines(folder / run_folder.NOT_FINITE, [facts])
                if skipped > settings.skip_not_finite:
                    raise FloatingPointError(
                        f"not finite: {not_finite(step)}. The last checkpoint is intact, and the "
                        f"faces of the batch are in {run_folder.NOT_FINITE}. Start again with a "
                        "lower rate (--set training.learning_rate=...), look at those faces, or "
                        "allow training.skip_not_finite such batches."
                    )

            # Save.
            is_last = state.step == total_steps
            is_due = within == 0 and epoch % settings.checkpoint_every_n_epochs == 0
            if is_due or is_last or is_stopping or is_overdue:
                if is_main:
                    checkpoint = state.checkpoint(config, epoch, experiment.fingerprint)
                    pruned = checkpoints.save(folder, checkpoint, is_epoch=within == 0)
                    if experiment.mirror:
                        experiment.mirror.copy(folder, pruned)
                saved_at = time.monotonic()
            yield step
            if is_stopping:
                if experiment.mirror:  # a notebook's machine may be given back at once
                    experiment.mirror.finish(folder)
                del on_device, validate  # a notebook keeps this frame, and with it their memory
                raise KeyboardInterrupt(f"stopped after step {state.step}; start again to resume")
        if experiment.mirror:
            experiment.mirror.finish(folder)


def compute(
    state: TrainingState,
    objective: Objective,
    text_encoder: TextEncoder,
    settings: TrainingConfig,
    precision: str,
    accelerator: Accelerator,
) -> DeviceStep:
    """What the device computes in a step, as one call: batch -> measurements.

    Args:
        text_encoder: on the device of the state.
        precision: "bf16", "fp16" or "no", of `choose_precision`.
    """
    device, is_alone = state.updates.device, accelerator.num_processes == 1
    half = HalfCopy(state.unet, precision) if is_alone and precision in PRECISIONS else None
    bare = prepare_unet(half.unet if half else state.unet, settings, device, is_alone)
    unet = bare if is_alone else accelerator.prepare_model(bare)
    objective, text_encoder = objective.to(device), text_encoder.cast(precision)

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
        norm = apply_gradients(state)
        return measure(losses, batch.timesteps, objective.num_train_timesteps, norm)

    # Where others wait in the middle of a backward pass, no process can begin it again.
    may_uncompile = is_alone and settings.compile is None
    return DeviceStep(
        state,
        backward,
        update,
        settings.micro_batch_size or settings.batch_size,
        may_halve=is_alone,
        recorder=open_recorder(device) if is_alone else None,
        uncompile=partial(uncompile_blocks, bare) if may_uncompile else None,
    )


def apply_gradients(state: TrainingState) -> Tensor:
    """Unscale, clip, AdamW, average, all of it on the device; returns the gradient's norm, ().

    Where the norm is not finite, nothing moves: AdamW's fused kernel reads the decision from the
    device, as the host would have to wait for it.
    """
    state.scaler.unscale_(state.optimizer)
    gradients = [weight.grad for weight in state.weights if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    is_finite = torch.isfinite(norm)
    # On a CPU the host looks first whether there is something to clip: a pass over all gradients.
    if not (_reads_for_free(norm) and norm + 1e-6 <= MAX_GRAD_NORM):
        torch.nn.utils.clip_grads_with_norm_(state.weights, MAX_GRAD_NORM, norm)
    optimizer: Any = state.optimizer  # torch declares neither of these
    optimizer.grad_scale, optimizer.found_inf = None, 1.0 - is_finite.float()
    state.optimizer.step()
    if state.scaler.is_enabled():
        state.scaler.update()
    update_average(state, is_finite.float(), EMA_DECAY)
    return norm


@torch.no_grad()
def update_average(state: TrainingState, moved: Tensor, decay: float) -> None:
    """average += w (weights - average), w = max((1 + n)^-3/4, 1 - decay) after n updates.

    The decay grows with n, so that the average of a short run forgets its first weights.
    """
    weight = moved * (1 + state.updates).pow(-0.75).clamp(min=1 - decay)
    state.updates += moved
    if _reads_for_free(weight):
        torch._foreach_lerp_(state.averages, state.weights, float(weight))
        return
    # A lerp whose weight is on the device exists for single tensors only.
    difference = torch._foreach_sub(state.weights, state.averages)
    torch._foreach_mul_(difference, weight)
    torch._foreach_add_(state.averages, difference)


def _reads_for_free(value: Tensor) -> bool:
    """Whether the host can look at a value without waiting for a device."""
    return value.device.type == "cpu"


def learning_rate_at(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then constant or a cosine to zero; depends on the step only."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    part = min(1.0, step / total_steps) if config.lr_decay == "cosine" else 0.0
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * part))


def read(
    row: Tensor, flags: Sequence[bool], accelerator: Accelerator
) -> tuple[list[float], list[bool]]:
    """A step's measurements summed over the processes, and which flags are set in any of them."""
    if accelerator.num_processes == 1:
        return row.tolist(), list(flags)
    shared = torch.tensor([float(flag) for flag in flags], device=row.device)
    values = accelerator.reduce(torch.cat([shared, row])).tolist()
    values[-1] /= accelerator.num_processes  # the gradient's norm is the same in all of them
    return values[len(flags) :], [value > 0 for value in values[: len(flags)]]


def not_finite(step: Step) -> dict[str, Any]:
    """A step whose loss or gradient is not finite, as JSON can hold it."""
    return {
        "step": step.number,
        "loss": str(step.loss),
        "gradient_norm": str(step.gradient_norm),
        "learning_rate": step.learning_rate,
    }
