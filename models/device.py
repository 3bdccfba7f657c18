"""The device: in which precision it computes, and what memory it keeps."""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory within the block, also as a decorator; give back what is free at its end.

    What is computed stays the same. After the first block what is freed outside of one goes back at
    the end of the next. Does nothing where the C library is not glibc, or with LDM_KEEP_MEMORY=0 in
    the environment.
    """
    libc = _glibc_that_keeps()
    try:
        yield
    finally:
        if libc:
            libc.malloc_trim(0)


@functools.cache
def _glibc_that_keeps() -> ctypes.CDLL | None:
    if sys.platform != "linux" or os.environ.get("LDM_KEEP_MEMORY") == "0":
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
    # Only the first arena grows without bound; threads would map large tensors again in theirs.
    libc.mallopt(M_ARENA_MAX, 1)
    return libc


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
