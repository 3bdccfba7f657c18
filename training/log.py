"""Logs a run in blocks of steps: the host reads the device only at the end of a block."""

from collections.abc import Sequence

from torch import Tensor

from training import run_folder
from training.experiment import Experiment
from training.step import Ledger, Step, Stopwatch


class Log:
    """Reads the measurements of steps, appends them to `losses.jsonl`, and refuses numbers that are
    not finite.

    On a GPU a block has `training.log_every` steps, so that the host never waits within one; on a
    CPU, where reading costs nothing, each step is one.
    """

    def __init__(self, experiment: Experiment, total_steps: int) -> None:
        accelerator, settings = experiment.accelerator, experiment.config.training
        self.experiment, self.total_steps, self.settings = experiment, total_steps, settings
        self.is_alone = accelerator.num_processes == 1
        reduce = None if self.is_alone else accelerator.reduce
        count = experiment.objective.num_train_timesteps
        self.ledger = Ledger(count, accelerator.num_processes, reduce)
        self.block = 1 if experiment.device.type == "cpu" else settings.log_every
        self.stopwatch, self.seconds_a_step = Stopwatch(), 0.0
        self.steps: list[Step] = []  # of this block
        lines = run_folder.read_lines(experiment.folder / run_folder.NOT_FINITE)
        self.skipped = len({line["step"] for line in lines})

    def begin_step(self) -> None:
        """Start the stopwatch."""
        self.stopwatch.resume()

    def end_step(self, losses: Tensor, timesteps: Tensor, norm: Tensor, rate: float) -> Step:
        """Note a finished step; its losses stay on the device."""
        number = self.experiment.state.step
        self.ledger.note(number, losses, timesteps, norm)
        self.stopwatch.pause()
        epoch = number // self.experiment.batches.steps_per_epoch
        step = Step(number, epoch, rate, self.ledger)
        self._add_speed(step)
        self.steps.append(step)
        return step

    def _add_speed(self, step: Step) -> None:
        if self.seconds_a_step:
            step.images_per_second = self.settings.global_batch_size / self.seconds_a_step
            step.seconds_left = (self.total_steps - step.number) * self.seconds_a_step

    def is_block_end(self, is_due: bool, is_wanted: bool) -> bool:
        """Whether to read now. Several processes must read together, so a request by one of them
        waits for the end of the block.
        """
        number = self.experiment.state.step
        return number % self.block == 0 or is_due or (is_wanted and self.is_alone)

    def write(self, flags: Sequence[bool]) -> list[bool]:
        """Read the block and log it; returns which flags are set in any process.

        Raises:
            FloatingPointError: more steps than allowed had a loss or gradient that is not finite.
        """
        shared = self.ledger.read([float(flag) for flag in flags])
        self.seconds_a_step = self.stopwatch.lap()
        steps, self.steps = self.steps, []
        for step in steps:
            self._add_speed(step)
            step.known = self.ledger.of(step.number)
        if self.experiment.accelerator.is_main_process:
            path = self.experiment.folder / run_folder.LOSSES
            run_folder.append_lines(path, (step.record() for step in steps))
        for step in steps:
            if step.skipped and not self._is_scalers(step):
                self._refuse(step)
        return [value > 0 for value in shared]

    def _is_scalers(self, step: Step) -> bool:
        """Whether float16's scaler caused a skipped step: the loss is finite, and only its scaled
        gradient overflowed. This is expected; the scale falls.
        """
        is_finite = abs(step.loss) < float("inf")
        return self.experiment.state.scaler.is_enabled() and is_finite

    def _refuse(self, step: Step) -> None:
        """Record the batch of a skipped step; raise where more were skipped than allowed."""
        batches = self.experiment.batches
        facts = {
            "step": step.number,
            "loss": str(step.loss),
            "gradient_norm": str(step.measured.gradient_norm),
            "learning_rate": step.learning_rate,
            "faces": batches.positions(step.number - 1).tolist(),
        }
        if self.experiment.accelerator.is_main_process:
            run_folder.append_lines(self.experiment.folder / run_folder.NOT_FINITE, [facts])
        self.skipped += 1
        if self.skipped > self.settings.skip_not_finite:
            raise FloatingPointError(
                f"step {step.number}: the loss is {facts['loss']}, the gradient's norm "
                f"{facts['gradient_norm']} at learning rate {step.learning_rate:.2e}; the last "
                f"checkpoint is intact, and the faces of the batch are in {run_folder.NOT_FINITE}. "
                "Start again with a lower rate (--set training.learning_rate=...), look at those "
                "faces, or allow training.skip_not_finite such batches."
            )
