"""A frozen network's forward pass as CUDA graphs: the host launches one graph, not 1,500 kernels.

A sampler asks the UNet for a prediction many times with inputs of the same shapes. On a fast GPU
the host needs longer to launch the kernels of a prediction than the GPU to run them. A graph
launches the same kernels on the same memory, so that results stay the same.
LDM_GRAPHS=0 switches graphs off.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.device import autocast

MOST_GRAPHS = 4  # kept of one network: guidance within an interval takes two


class _Graph(NamedTuple):
    """A captured call, with the memory that it reads and writes."""

    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    output: Tensor


class Graphs:
    """The graphs of one network, one for each kind of its inputs.

    Args:
        network: frozen; its weights may change in place.
        forward: (inputs) -> the network's output. Depends on nothing but its inputs and weights.
    """

    def __init__(self, network: nn.Module, forward: Callable[..., Tensor]) -> None:
        self.weights, self.forward = list(network.parameters()), forward
        self.graphs: OrderedDict[tuple[object, ...], _Graph | None] = OrderedDict()
        self.lock = threading.Lock()  # threads of the page share the graphs' memory

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output, in memory of its own."""
        if not can_graph(inputs):
            return self.forward(*inputs)
        with self.lock:
            key = self._key(inputs)
            if key not in self.graphs:
                self._keep(key, None)
                return self.forward(*inputs)
            captured = self.graphs[key] or self._keep(key, _capture(self.forward, inputs))
            for held, given in zip(captured.inputs, inputs, strict=True):
                held.copy_(given)
            captured.graph.replay()
            return captured.output.clone()

    def _key(self, inputs: tuple[Tensor, ...]) -> tuple[object, ...]:
        """What a graph cannot follow: shapes and types, and where weights and inputs lie."""
        kinds = ((given.shape, given.dtype, given.stride(), given.device) for given in inputs)
        return (*kinds, *(weight.data_ptr() for weight in self.weights))

    def _keep(self, key: tuple[object, ...], captured: _Graph | None) -> _Graph | None:
        self.graphs[key] = captured
        while len(self.graphs) > MOST_GRAPHS:
            self.graphs.popitem(last=False)
        return captured


def can_graph(inputs: tuple[Tensor, ...]) -> bool:
    """Whether all inputs are on a CUDA device, without gradients, and graphs are wanted."""
    if os.environ.get("LDM_GRAPHS") == "0" or torch.is_grad_enabled():
        return False
    return all(given.is_cuda for given in inputs)


def _capture(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> _Graph:
    """Record a call; libraries have chosen their kernels in the call before it."""
    held = tuple(given.clone() for given in inputs)
    with torch.cuda.device(inputs[0].device):  # a stream of the current one would record nothing
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # its workspaces are reserved before the recording
            forward(*held)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = forward(*held)
    return _Graph(graph, held, output)


def graphed_unet(unet: UNet2DConditionModel, precision: str) -> Graphs:
    """(latents (B, C, h, w), timesteps (B,), hidden states (B, L, D)) -> prediction (B, C, h, w).

    Args:
        precision: autocast precision, see `models.device.choose_precision`.
    """

    def predict(latents: Tensor, timesteps: Tensor, hidden_states: Tensor) -> Tensor:
        with autocast(precision, latents.device):
            return unet(latents, timesteps, hidden_states, return_dict=False)[0]

    return Graphs(unet, predict)
