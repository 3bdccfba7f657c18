"""Memory on a CPU: what tensors free stays with the process while it computes.

glibc maps large tensors one by one and unmaps them when they are freed, so that the kernel hands
out and clears the pages of every activation anew: at full size a tenth of a training step and
almost a third of the encoder's time (`benchmarks/training.py`, `benchmarks/growth.py`). On a GPU
PyTorch itself keeps what is freed.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
