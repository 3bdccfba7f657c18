"""CUDA graphs: the host launches one graph in place of thousands of kernels.

On a fast GPU the host needs longer to launch the kernels of a small network than the GPU to run
them. A graph launches the same kernels on the same memory, so that results stay the same. A
training step is recorded by `training.device_step`, the prediction of a frozen UNet by
`GraphedUNet`. LDM_GRAPHS=0 switches graphs off.
"""

import os
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from models.device import autocast

MAX_GRAPHS = 4  # kept of one network, one for each shape of its inputs


class Recorder:
    """Runs and records calls on one stream of a CUDA device.

    What runs before a recording has to run on the same stream: autograd returns to the stream of a
    tensor's first use, and libraries reserve their workspaces for each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, call: Callable[[], Tensor]) -> Tensor:
        """The call's result; kernels of the caller's stream end before, later ones wait."""
        callers = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(callers)
        with torch.cuda.stream(self.stream):
            result = call()
        callers.wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a call without executing it: a function that replays it, and where the result is.

        Raises:
            RuntimeError: the call does something that a graph cannot hold, or memory is lacking.
        """
        graph = torch.cuda.CUDAGraph()
        # "thread_local": threads that make batches pin memory meanwhile.
        capture = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        # Where ending a capture fails, torch leaves its stream the current one.
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream), capture:
            result = call()
        return graph.replay, result


def reason_of(error: BaseException) -> str:
    """What the error that began it says, without the advice that follows: ending a capture that
    failed, or a compiler, raises another one.
    """
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_wanted() -> bool:
    """Whether graphs are not switched off."""
    return os.environ.get("LDM_GRAPHS") != "0"


def open_recorder(device: torch.device) -> Recorder | None:
    """A recorder for this device; None where it has no graphs, or they are not wanted."""
    return Recorder(device) if device.type == "cuda" and is_wanted() else None


class _Graph(NamedTuple):
    """A recorded call, with the memory that it reads and writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]
    output: Tensor


class GraphedUNet:
    """The prediction of a frozen UNet, whose graphs are kept: one for each kind of its inputs.

    Its weights may change in place.

    Args:
        precision: autocast precision, see `models.device.choose_precision`.
    """

    def __init__(self, unet: UNet2DConditionModel, precision: str) -> None:
        self.unet, self.precision, self.weights = unet, precision, list(unet.parameters())
        self.graphs: dict[tuple[object, ...], _Graph | None] = {}
        self.lock = threading.Lock()  # threads of the page share the graphs' memory
        self.may_capture = True

    def forward(self, latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        """The prediction without a graph."""
        with autocast(self.precision, latents.device):
            return self.unet(latents, timesteps, hidden_states, return_dict=False)[0]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """(latents (B, C, h, w), timesteps (B,), hidden states (B, L, D)) -> prediction (B, C, h,
        w), in memory of its own.
        """
        if not self.may_capture or not can_graph(inputs):
            return self.forward(*inputs)
        with self.lock:
            key = self._key(inputs)
            if key not in self.graphs:
                if len(self.graphs) == MAX_GRAPHS:
                    del self.graphs[next(iter(self.graphs))]  # the oldest
                self.graphs[key] = None
                return self.forward(*inputs)
            captured = self.graphs[key] = self.graphs[key] or self._try_capture(inputs)
            if captured is None:
                return self.forward(*inputs)
            for held, given in zip(captured.inputs, inputs, strict=True):
                held.copy_(given)
            captured.replay()
            return captured.output.clone()

    def _try_capture(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """None where it fails, and the error with it, which holds the memory of what failed."""
        try:
            return _capture(self.forward, inputs)
        except RuntimeError as error:  # what torch raises for whatever a graph cannot hold
            self.may_capture = False
            print(f"no CUDA graph, so kernels run one by one: {reason_of(error)}")
            return None

    def _key(self, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
        """What a graph cannot follow: shapes and types, and where weights and inputs lie."""
        kinds = ((given.shape, given.dtype, given.stride(), given.device) for given in inputs)
        return (*kinds, *(weight.data_ptr() for weight in self.weights))


def can_graph(inputs: tuple[Tensor, ...]) -> bool:
    """Whether all inputs are on a CUDA device, without gradients, and graphs are wanted."""
    is_frozen = not torch.is_grad_enabled()
    return is_frozen and is_wanted() and all(given.is_cuda for given in inputs)


def _capture(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> _Graph:
    """Record a call; libraries have chosen their kernels in the call before it."""
    held, recorder = tuple(given.clone() for given in inputs), Recorder(inputs[0].device)
    recorder.run(lambda: forward(*held))
    replay, output = recorder.record(lambda: forward(*held))
    return _Graph(replay, held, output)
