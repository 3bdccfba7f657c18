"""In which precision a device computes: bfloat16 autocast over float32 weights where it can."""

import torch


def supported(mixed_precision: str, device: torch.device) -> str:
    """The precision asked for, "bf16" or "no"; "no" where a GPU would only emulate bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "no"
    return mixed_precision


def autocast(mixed_precision: str, device: torch.device) -> torch.autocast:
    """Autocast of that precision on that device."""
    use_bf16 = supported(mixed_precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=use_bf16)
