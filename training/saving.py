"""Saves a run's checkpoint, deletes those that need not be kept, and mirrors it."""

from training import checkpoints, run_folder
from training.checkpoints import Checkpoint
from training.experiment import Experiment
from training.mirror import Mirror


def open_mirror(experiment: Experiment) -> Mirror | None:
    """Where checkpoints are copied to, in the main process; None: nowhere."""
    wanted = experiment.config.training.mirror
    is_main = experiment.accelerator.is_main_process
    return Mirror(wanted, experiment.config.name) if wanted and is_main else None


def save(experiment: Experiment, mirror: Mirror | None) -> None:
    """Save the state as it is, in the main process only.

    Raises:
        OSError: it cannot be written; what was saved before is intact.
    """
    if not experiment.accelerator.is_main_process:
        return
    state, folder = experiment.state, experiment.folder
    settings = experiment.config.training
    epoch, within = divmod(state.step, experiment.batches.steps_per_epoch)
    path = checkpoints.checkpoint_path(folder, epoch, state.step, within == 0)
    checkpoint = Checkpoint(
        config=experiment.config,
        epoch=epoch,
        step=state.step,
        fingerprint=experiment.fingerprint,
        unet=state.unet.state_dict(),
        ema=state.ema_unet.state_dict(),
        optimizer=state.optimizer_values(),
        scaler=state.scaler.state_dict(),
        updates=int(state.updates),
    )
    run_folder.sync(folder)
    checkpoints.save_checkpoint(path, checkpoint)
    best = checkpoints.best_epoch(folder)
    last, every = settings.keep_last, settings.keep_every_n_epochs
    pruned = checkpoints.superfluous(path, last, every, best)
    for old in pruned:
        old.unlink()
    if mirror:
        mirror.copy(folder, path, pruned)
