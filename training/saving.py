"""When a checkpoint is due, and how it is saved, pruned and mirrored."""

import time

from training import checkpoints, run_folder
from training.checkpoints import Checkpoint
from training.experiment import Experiment
from training.mirror import Mirror


class Saving:
    """Saves the checkpoints of a run: at the end of every n-th epoch and of the run, after
    `training.save_every_minutes` and when the run is asked to stop.
    """

    def __init__(self, experiment: Experiment, total_steps: int) -> None:
        self.experiment, self.total_steps = experiment, total_steps
        self.settings = experiment.config.training
        self.saved_at = time.monotonic()
        is_main = experiment.accelerator.is_main_process
        wanted = self.settings.mirror if is_main else None
        self.mirror = Mirror(wanted, experiment.config.name) if wanted else None

    @property
    def _progress(self) -> tuple[int, int]:
        """(finished epochs, steps within the next one)."""
        return divmod(self.experiment.state.step, self.experiment.batches.steps_per_epoch)

    def is_due(self) -> bool:
        """Whether the plan asks for a checkpoint after this step."""
        epoch, within = self._progress
        wanted = within == 0 and epoch % self.settings.checkpoint_every_n_epochs == 0
        return wanted or self.experiment.state.step == self.total_steps

    def is_overdue(self) -> bool:
        """Whether the last checkpoint is older than `training.save_every_minutes`."""
        return time.monotonic() - self.saved_at > 60 * self.settings.save_every_minutes

    def save(self) -> None:
        """Save a checkpoint, delete those that need not be kept, and mirror it, in the main process
        only.

        Raises:
            OSError: it cannot be written; what was saved before is intact.
        """
        self.saved_at = time.monotonic()
        experiment, settings = self.experiment, self.settings
        if not experiment.accelerator.is_main_process:
            return
        epoch, within = self._progress
        path = checkpoints.checkpoint_path(
            experiment.folder, epoch, experiment.state.step, within == 0
        )
        run_folder.sync(experiment.folder)
        checkpoints.save_checkpoint(path, self._checkpoint(epoch))
        last, every = settings.keep_last, settings.keep_every_n_epochs
        best = checkpoints.best_epoch(experiment.folder)
        pruned = checkpoints.superfluous(path, last, every, best)
        for old in pruned:
            old.unlink()
        if self.mirror:
            self.mirror.copy(experiment.folder, path, pruned)

    def _checkpoint(self, epoch: int) -> Checkpoint:
        state, experiment = self.experiment.state, self.experiment
        return Checkpoint(
            config=experiment.config,
            epoch=epoch,
            step=state.step,
            fingerprint=experiment.fingerprint,
            unet=state.unet.state_dict(),
            ema=state.ema_unet.state_dict(),
            optimizer=state.optimizer.state_dict(),
            scaler=state.scaler.state_dict(),
            updates=int(state.updates),
        )

    def finish(self) -> None:
        """Wait for the mirror."""
        if self.mirror:
            self.mirror.wait()
