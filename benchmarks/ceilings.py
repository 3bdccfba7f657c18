"""What a device can do at best: the rates beside which a training step's is read."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from config import get_config
from models.custom_unet_celeba_ldm import build_unet
from models.device import PRECISIONS, choose_precision


def ceilings(preset: str, batch: int, size: int, device: torch.device) -> dict[str, float]:
    """10^12 operations a second of matrix products, and of the UNet's largest convolutions forward
    and backward; 10^12 bytes a second of a copy.

    Args:
        size: of the matrices.
    """
    found, best = {}, choose_precision("auto", device)
    for name in dict.fromkeys(("no", best, *(["fp16"] if device.type == "cuda" else []))):
        pair = torch.randn(2, size, size, device=device).to(PRECISIONS.get(name, torch.float32))
        found[f"{name}_tflops"] = rate(2 * size**3, partial(torch.matmul, *pair), device)
    source = torch.ones(size, size, device=device)
    copy = partial(torch.empty_like(source).copy_, source)
    found["copy_terabytes"] = rate(8 * size**2, copy, device)
    dtype = PRECISIONS.get(best, torch.float32)
    for (inputs, weight, stride), operations in largest_convolutions(preset):
        given = [torch.randn(*shape, device=device) for shape in ((batch, *inputs), weight)]
        given = [part.to(dtype, memory_format=torch.channels_last) for part in given]
        for part in given:
            part.requires_grad_(True)

        def both(given: list[torch.Tensor] = given, stride: object = stride) -> None:
            output = functional.conv2d(*given, stride=stride, padding=1)
            torch.autograd.grad(output, given, output.detach())

        name = f"{weight[1]}->{weight[0]}, {inputs[1]}x{inputs[1]}"
        found[name] = rate(3 * batch * operations, both, device)
    return found


def largest_convolutions(preset: str, count: int = 8) -> list[tuple[Any, int]]:
    """Shapes of input and weight, stride; operations of a sample's forward pass."""
    found: dict[Any, int] = {}

    def note(module: torch.nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        shapes = (tuple(inputs[0].shape[1:]), tuple(module.weight.shape), module.stride[0])
        found[shapes] = 2 * output.numel() * module.weight[0].numel()

    shape = get_config(preset).unet
    with torch.device("meta"), torch.no_grad():
        unet = build_unet(shape)
        for module in unet.modules():
            if isinstance(module, torch.nn.Conv2d) and module.padding == (1, 1):
                module.register_forward_hook(note)
        latents = torch.empty(1, shape.latent_channels, shape.latent_size, shape.latent_size)
        unet(latents, torch.empty(1), torch.empty(1, 8, shape.text_width))
    return sorted(found.items(), key=lambda item: item[1], reverse=True)[:count]


def rate(work: float, call: Callable[[], object], device: torch.device) -> float:
    """10^12 operations or bytes a second of a call that does so many."""
    module, rounds = torch.get_device_module(device), 10
    call()
    module.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    module.synchronize()
    return work * rounds / (time.perf_counter() - start) / 1e12
