"""The part of a step that turns a batch into gradients."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from config import TrainingConfig
from diffusion.objective import Objective
from models.device import autocast
from training.batches import Batch
from training.caption_states import ConditionSource


class Gradients:
    """Computes the gradient of a batch's weighted loss, in micro-batches that fit the device.

    The gradient is that of the whole batch of all processes, for any split: each part adds the
    sum of its weighted losses, divided by the size of the whole batch.

    Args:
        unet: the model, wrapped for several processes.
        objective: with its tables on the device.
        conditions: a batch -> hidden states (b, L, D).
        precision: "bf16", "fp16" or "no".
        scaler: scales the loss in float16.
    """

    def __init__(
        self,
        unet: nn.Module,
        objective: Objective,
        conditions: ConditionSource,
        accelerator: Accelerator,
        config: TrainingConfig,
        precision: str,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.unet, self.objective, self.conditions = unet, objective, conditions
        self.accelerator, self.precision, self.scaler = accelerator, precision, scaler
        self.parameters = list(unet.parameters())
        self.batch_size = config.global_batch_size
        self.micro_batch_size = config.micro_batch_size or self.batch_size

    def __call__(self, batch: Batch) -> Tensor:
        """Set the gradients of all parameters; returns the losses (b,), not weighted.

        Where the device runs out of memory, halves the micro-batch, says so, and starts the batch
        again: the gradient stays the same.

        Raises:
            RuntimeError: not even one sample fits, or one of several processes ran out of memory.
        """
        while True:
            try:
                return self._accumulate(batch)
            except torch.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            # Outside of the handler, as the error holds the tensors of the pass that failed.
            self._halve(min(self.micro_batch_size, len(batch)), reason)

    def _accumulate(self, batch: Batch) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        parts = batch.split(self.micro_batch_size)
        losses = []
        for number, part in enumerate(parts, start=1):
            # The processes add their gradients up in the backward pass of the last part.
            is_last = number == len(parts)
            with nullcontext() if is_last else self.accelerator.no_sync(self.unet):
                losses.append(self._backward(part))
        return torch.cat(losses)

    def _backward(self, part: Batch) -> Tensor:
        hidden_states = self.conditions(part)
        losses = self.objective.loss(
            self._denoise, part.latents, hidden_states, part.timesteps, part.noise
        )
        # Several processes average their gradients; the sum over all of them is wanted.
        share = self.accelerator.num_processes / self.batch_size
        self.scaler.scale((part.loss_weights * losses).sum() * share).backward()
        return losses.detach()

    def _denoise(self, noisy_latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        with autocast(self.precision, noisy_latents.device):
            return self.unet(noisy_latents, timesteps, hidden_states, return_dict=False)[0]

    def _halve(self, size: int, reason: str) -> None:
        if self.accelerator.num_processes > 1 or size == 1:
            raise RuntimeError(
                f"out of memory with {size} samples at once ({reason}). Set "
                f"training.micro_batch_size={max(1, size // 2)}, or "
                "training.gradient_checkpointing=true, and start again: the run resumes from its "
                "last checkpoint, with the same result"
            )
        for parameter in self.parameters:
            parameter.grad = None
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch_size = size // 2
        print(f"out of memory with {size} samples at once: continuing with {size // 2}")
