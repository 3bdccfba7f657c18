"""In which precision a device computes: bfloat16 autocast over float32 weights where it can."""

import torch


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
