"""In which precision a device computes: bfloat16 autocast over float32 weights where it can."""

import torch
from torch import nn


def supported(mixed_precision: str, device: torch.device) -> str:
    """The precision asked for, "bf16" or "no"; "no" where a device would only emulate bfloat16."""
    if device.type == "cuda":
        is_real = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_real = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return mixed_precision if is_real else "no"


def autocast(mixed_precision: str, device: torch.device) -> torch.autocast:
    """Autocast of that precision on that device."""
    use_bf16 = supported(mixed_precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16)


def cast_matrices(model: nn.Module, mixed_precision: str, device: torch.device) -> nn.Module:
    """Cast the weights of a frozen model's products once, which autocast would do at every call.

    What it computes under `autocast` stays the same, bit for bit. Training must not: it needs its
    weights in float32.
    """
    if supported(mixed_precision, device) == "bf16":
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
    return model
