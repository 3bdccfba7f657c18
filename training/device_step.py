"""What a device computes in a step: whole or in micro-batches, and on CUDA as one graph."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch._dynamo
from torch import Tensor

from models.graphs import Recorder, first_line, first_of
from training.batches import Batch
from training.state import TrainingState

# No C compiler, a card that Triton does not know: torch raises each as one of these.
COMPILER_ERRORS = torch._dynamo.exc.TorchDynamoException
PLAIN_STEPS = 3  # before a recording: compilation, cuDNN's search, the optimiser's first state


class DeviceStep:
    """Computes steps. A class, as the micro-batch that fits and the graph stay from step to step.

    With a recorder, three steps of a kind run operator by operator. Then a step is recorded, which
    executes nothing, and the graph is replayed for this step and all that follow: it reads the
    batch, the learning rate and the weights where they lie.

    Args:
        backward: (batch, micro-batch size) -> losses (b,); sets the gradients.
        update: (batch, losses) -> measurements; applies the gradients.
        micro_batch_size: samples in one forward pass, at first.
        may_halve: whether to go on with smaller micro-batches where memory runs out.
        recorder: None: no graph.
        uncompile: makes `backward` run without compilation; None: it does, or has to be compiled.
    """

    def __init__(
        self,
        state: TrainingState,
        backward: Callable[[Batch, int], Tensor],
        update: Callable[[Batch, Tensor], Tensor],
        micro_batch_size: int,
        may_halve: bool = True,
        recorder: Recorder | None = None,
        uncompile: Callable[[], None] | None = None,
    ) -> None:
        self.state, self.backward, self.update = state, backward, update
        self.size, self.may_halve, self.recorder = micro_batch_size, may_halve, recorder
        self.may_record, self.uncompile = recorder is not None, uncompile
        self.held: Batch | None = None  # the memory that the graph reads a batch from
        self.plain_steps, self.replay, self.result = 0, None, None
        if self.may_record:
            state.keep_rate_on_device()

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns the measurements of `update`, on the device.

        Raises:
            RuntimeError: not even one sample fits, or `may_halve` is false and memory ran out.
        """
        device = self.state.updates.device
        if self.recorder is None:
            return self._plainly(batch.to(device))
        if self.held is None or self.held.packed.shape != batch.packed.shape:
            self.held = replace(batch, packed=torch.empty_like(batch.packed, device=device))
            self.plain_steps, self.replay = 0, None
        return self.recorder.run(lambda: self._on_stream(batch))

    def _on_stream(self, batch: Batch) -> Tensor:
        self.held.packed.copy_(batch.packed, non_blocking=True)
        if self.may_record and self.replay is None and self.plain_steps >= PLAIN_STEPS:
            self._record()
        if self.replay is not None:
            self.replay()
            return self.result
        result = self._plainly(self.held)
        self.plain_steps += 1
        return result

    def _record(self) -> None:
        self.state.forget_step()
        try:
            self.replay, self.result = self.recorder.record(
                lambda: self.update(self.held, self.backward(self.held, self.size))
            )
        except RuntimeError as error:  # what torch raises for whatever a graph cannot hold
            self.may_record = False
            self.state.forget_step()
            print(
                "no CUDA graph of the training step, so it runs operator by operator: "
                f"{first_line(first_of(error))}"
            )

    def _plainly(self, batch: Batch) -> Tensor:
        """Halve the micro-batch until it fits; the gradient stays that of the whole batch."""
        while True:
            size = min(self.size, len(batch))
            try:
                losses = self.backward(batch, size)
                break
            except torch.OutOfMemoryError as error:
                mend, reason = partial(self._halve, size), first_line(error)
            except COMPILER_ERRORS as error:
                if self.uncompile is None:
                    raise
                mend, reason = self._stop_compiling, first_line(first_of(error))
            # Outside of the handler, as the error holds the tensors of the pass that failed.
            mend(reason)
        return self.update(batch, losses)

    def _stop_compiling(self, reason: str) -> None:
        assert self.uncompile is not None
        self.uncompile()
        self.uncompile, self.plain_steps = None, 0
        print(f"torch.compile does not work here, so the UNet runs without it: {reason}")

    def _halve(self, size: int, reason: str) -> None:
        if size == 1 or not self.may_halve:
            raise RuntimeError(
                f"out of memory with {size} samples at once ({reason}). Set "
                f"training.micro_batch_size={max(1, size // 2)}, or "
                "training.gradient_checkpointing=true, and start again: the run resumes from its "
                "last checkpoint, with the same result"
            )
        for weight in self.state.weights:
            weight.grad = None
        if self.state.updates.device.type == "cuda":
            torch.cuda.empty_cache()
        self.size, self.plain_steps = size // 2, 0
        print(f"out of memory with {size} samples at once: continuing with {size // 2}")
