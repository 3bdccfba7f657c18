"""The training loop: a generator of finished steps.

`train` yields after optimiser and average, so the caller may stop at any yield and keep a
consistent state. `batches` makes a batch, `gradients` turns it into gradients, `state` applies
them, `validation` measures held-out faces, `saving` decides when a checkpoint is due, `log` logs.
"""

from collections.abc import Iterator

from torch import nn

from config import TrainingConfig
from models.custom_unet_celeba_ldm import keep_channels_last, use_plain_attention
from models.device import can_compile, freed_memory_kept
from training.experiment import Experiment
from training.gradients import Gradients
from training.log import Log
from training.processes import lost_process_named
from training.saving import Saving
from training.signals import stop_on_signal
from training.state import apply_gradients, learning_rate_at
from training.step import Step
from training.validation import Validation


def train(experiment: Experiment) -> Iterator[Step]:
    """Train from the experiment's step to the last epoch; yields each finished step.

    Algorithm 1 of Ho et al. 2020, with the captions of Rombach et al. 2022, a tenth of them dropped
    (Ho & Salimans 2022). The first Ctrl-C (or SIGTERM and the like) finishes the step, saves a
    checkpoint and then raises KeyboardInterrupt; the next call resumes from it.

    Raises:
        FloatingPointError: loss or gradient is not finite (more often than
            `training.skip_not_finite`); the last checkpoint is intact.
        RuntimeError: the device has too little memory for one sample.
        ProcessLost: another process of the run has ended.
        OSError: a checkpoint cannot be written; the last one is intact.
    """
    state, batches, device = experiment.state, experiment.batches, experiment.device
    settings, accelerator = experiment.config.training, experiment.accelerator
    total_steps = batches.steps_per_epoch * settings.num_epochs
    gradients = Gradients(
        prepare_unet(experiment),
        experiment.objective.to(device),
        experiment.conditions,
        accelerator,
        settings,
        experiment.precision,
        state.scaler,
    )
    log, saving = Log(experiment, total_steps), Saving(experiment, total_steps)
    validation = Validation(experiment)
    with (
        stop_on_signal() as stop,
        freed_memory_kept(device),
        lost_process_named(accelerator),
    ):
        for batch in batches.ahead(state.step, total_steps):
            log.begin_step()
            batch = batch.to(device)
            losses = gradients(batch)
            rate = learning_rate_at(state.step, total_steps, settings)
            norm = apply_gradients(state, rate, settings)
            step = log.end_step(losses, batch.timesteps, norm, rate)
            if validation.is_due():
                step.validation_loss = validation.measure()
            is_due = saving.is_due() or validation.is_due()
            if log.is_block_end(is_due, stop.is_set() or saving.is_overdue()):
                is_stopping, is_overdue = log.write([stop.is_set(), saving.is_overdue()])
                if saving.is_due() or is_stopping or is_overdue:
                    saving.save()
                if is_stopping:
                    raise KeyboardInterrupt(
                        f"stopped after step {state.step}; start again to resume"
                    )
            yield step
        saving.finish()


def prepare_unet(experiment: Experiment) -> nn.Module:
    """The live UNet in the form that trains fastest on its device, wrapped for its processes."""
    unet, settings = experiment.state.unet, experiment.config.training
    accelerator, device = experiment.accelerator, experiment.device
    unet.train()
    if device.type == "cpu" and not settings.fused_attention:
        use_plain_attention(unet)
    if accelerator.num_processes == 1:
        keep_channels_last(unet)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if wants_compile(settings, experiment):
        unet.compile()
    return accelerator.prepare_model(unet)


def wants_compile(settings: TrainingConfig, experiment: Experiment) -> bool:
    """Whether to compile the UNet: as the setting says, else where it pays and works."""
    if settings.compile is None:
        return can_compile(experiment.device)
    return settings.compile
