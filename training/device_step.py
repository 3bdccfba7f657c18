"""How a device runs a step: whole or in micro-batches, in half precision, on CUDA as one graph."""

import copy
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch._dynamo
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from config import Config, TrainingConfig
from models.custom_unet_celeba_ldm import compile_blocks, recompute_activations, training_operations
from models.device import can_compile, cast_matrices, empty_cache, matrix_rate
from models.graphs import Recorder, reason_of
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
        uncompile: makes `backward` run without compilation; None: its errors are final.
    """

    def __init__(
        self,
        state: TrainingState,
        backward: Callable[[Batch, int], Tensor],
        update: Callable[[Batch, Tensor], Tensor],
        micro_batch_size: int,
        may_halve: bool,
        recorder: Recorder | None,
        uncompile: Callable[[], None] | None,
    ) -> None:
        self.state, self.backward, self.update = state, backward, update
        self.size, self.may_halve, self.recorder = micro_batch_size, may_halve, recorder
        self.may_record, self.uncompile = recorder is not None, uncompile
        self.held: Batch | None = None  # the memory that the graph reads a batch from
        self.plain_steps = 0
        self.recorded: tuple[Callable[[], None], Tensor] | None = None  # replay, and its result
        if recorder:
            state.keep_rate_on_device()

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns the measurements of `update`, on the device.

        Raises:
            RuntimeError: not even one sample fits, or `may_halve` is false and memory ran out.
        """
        if self.recorder is None:
            return self._plainly(batch.to(self.state.updates.device))
        return self.recorder.run(partial(self._on_stream, self.recorder, batch))

    def _on_stream(self, recorder: Recorder, batch: Batch) -> Tensor:
        if self.held is None:
            self.held = batch.to(self.state.updates.device)
        for held, part in zip(self.held, batch, strict=True):
            held.copy_(part, non_blocking=True)
        if self.may_record and self.recorded is None and self.plain_steps >= PLAIN_STEPS:
            self._record(recorder, self.held)
        if self.recorded is not None:
            replay, row = self.recorded
            replay()
            return row
        result = self._plainly(self.held)
        self.plain_steps += 1
        return result

    def _record(self, recorder: Recorder, held: Batch) -> None:
        self.state.forget_step()
        try:
            self.recorded = recorder.record(
                lambda: self.update(held, self.backward(held, self.size))
            )
        except RuntimeError as error:  # what torch raises for whatever a graph cannot hold
            self.may_record = False
            self.state.forget_step()
            print(
                "no CUDA graph of the training step, so it runs operator by operator: "
                f"{reason_of(error)}"
            )

    def _plainly(self, batch: Batch) -> Tensor:
        """Halve the micro-batch until it fits; the gradient stays that of the whole batch."""
        while True:
            size = min(self.size, len(batch.latents))
            try:
                losses = self.backward(batch, size)
                break
            except torch.OutOfMemoryError as error:
                mend: Callable[[str], None] = partial(self._halve, size)
                reason = reason_of(error)
            except COMPILER_ERRORS as error:
                if self.uncompile is None:
                    raise
                mend, reason = self._stop_compiling, reason_of(error)
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
        empty_cache(self.state.updates.device)
        self.size, self.plain_steps = size // 2, 0
        print(f"out of memory with {size} samples at once: continuing with {size // 2}")


class HalfCopy:
    """The UNet with its matrices in half precision, which computes in place of the live one.

    autocast casts each matrix in every forward pass and each gradient in every backward pass: 932
    kernels a micro-batch at full size. Here all matrices are cast once a step. Gradients are the
    same to the bit: those of a micro-batch are in half precision either way, and add up in float32.

    Everything but matrices and their biases is shared with the live UNet.
    """

    def __init__(self, unet: UNet2DConditionModel, precision: str) -> None:
        self.unet = copy.deepcopy(unet, {id(weight): weight for weight in unet.parameters()})
        cast_matrices(self.unet, precision)  # which puts new ones in the place of shared ones
        pairs = list(zip(unet.parameters(), self.unet.parameters(), strict=True))
        self.matrices = [live for live, own in pairs if own is not live]
        self.halves = [own for live, own in pairs if own is not live]

    @torch.no_grad()
    def take_weights(self) -> None:
        """Cast the live weights, which an update changed, and drop what a pass that failed left."""
        for half in self.halves:
            half.grad = None
        torch._foreach_copy_(self.halves, self.matrices)

    @torch.no_grad()
    def give_gradients(self) -> None:
        """Add the gradients of a micro-batch to those of the live weights, in float32."""
        gradients = [cast(Tensor, half.grad) for half in self.halves]
        if self.matrices[0].grad is None:
            for matrix in self.matrices:
                matrix.grad = torch.empty_like(matrix)
            torch._foreach_copy_([cast(Tensor, m.grad) for m in self.matrices], gradients)
        else:
            torch._foreach_add_([cast(Tensor, m.grad) for m in self.matrices], gradients)
        for half in self.halves:
            half.grad = None


def prepare_unet(
    unet: UNet2DConditionModel, settings: TrainingConfig, device: torch.device, is_alone: bool
) -> UNet2DConditionModel:
    """Bring the UNet into the form that trains fastest on its device."""
    unet.train()
    if is_alone:  # in training diffusers copies the input of shortcuts, for DDP (its issue 12975)
        for module in unet.modules():
            if isinstance(module, ResnetBlock2D):
                module.eval()  # which changes nothing else, as nothing is dropped out
    if device.type == "cpu":
        # Two matrix products: at full size a step took 5 to 11 % less than with the fused kernel,
        # and the sums are the same.
        unet.set_attn_processor(AttnProcessor())
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
