"""The device: which one computes, in which precision, and what memory its process keeps.

One place for notebooks, scripts, page and evaluation. Environment variables: LDM_DEVICE ("cpu",
"cuda", "mps", "xpu") insists on a device; LDM_EXACT=1 switches TF32 and cuDNN's autotuner off;
LDM_KEEP_MEMORY=0 returns freed memory to the system at once.
"""

import ctypes
import functools
import importlib.util
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<number>\d+)[af]?")
# Dense products of half-precision matrices with float32 sums, in 10^12 operations a second, by a
# part of the card's name. From NVIDIA's data sheets.
MATRIX_RATES = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}
# From glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX, each with the value that keeps
# memory and glibc's own. Only the first arena grows without bound, so threads share it.
MALLOC_OPTIONS = {
    -1: (-1, 128 * 1024),
    -4: (0, 65_536),
    -8: (1, 8 * (os.cpu_count() or 1)),
}


def choose_device() -> torch.device:
    """The device of this process: LDM_DEVICE, else the first available of CUDA, XPU, MPS, CPU.

    Under `accelerate launch` each process takes the GPU of its local rank, and `--cpu` the CPU.

    Raises:
        ValueError: LDM_DEVICE names a device that is not available, or one card of several.
        RuntimeError: the installed torch has no kernels for this GPU; says what to install.
    """
    wanted = os.environ.get("LDM_DEVICE", "")
    if ":" in wanted:
        raise ValueError(
            f"LDM_DEVICE={wanted}: names a kind, without a number; CUDA_VISIBLE_DEVICES=1 (or "
            "ZE_AFFINITY_MASK=1) chooses a card"
        )
    kind = wanted or _first_available()
    if kind not in available_kinds():
        raise ValueError(
            f"LDM_DEVICE={kind}: not one of the devices here ({', '.join(available_kinds())})"
        )
    if kind == "cuda":
        require_kernels(torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
    if kind in ("cuda", "xpu"):
        return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)


def available_kinds() -> list[str]:
    """The kinds of devices that this machine has, best first."""
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu, "mps": torch.mps}
    return [*(name for name, kind in kinds.items() if kind.is_available()), "cpu"]


def _first_available() -> str:
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    return available_kinds()[0]


def require_kernels(capability: tuple[int, int], architectures: list[str]) -> None:
    """Refuse a GPU that the installed torch was not compiled for, before its first kernel fails.

    Args:
        capability: such as (6, 0) of a P100.
        architectures: such as ["sm_75", "sm_80", "compute_90"], of `torch.cuda.get_arch_list`.

    Raises:
        RuntimeError: no kernels for it; says what to install.
    """
    # AMD's names, such as "gfx90a", say nothing about a capability.
    known = [found for name in architectures if (found := ARCHITECTURE.fullmatch(name))]
    major, minor = capability
    # A binary of one major version runs on later minor ones; PTX ("compute_") on all later ones.
    runs = any(
        divmod(int(found["number"]), 10) <= capability
        and (int(found["number"]) // 10 == major or found["kind"] == "compute")
        for found in known
    )
    if known and not runs:
        raise RuntimeError(
            f"this torch ({torch.__version__}) has no kernels for {_gpu_name()} (sm_{major}{minor};"
            f" it has {', '.join(architectures)}). Install a build that does, such as `pip install "
            "torch torchvision --index-url https://download.pytorch.org/whl/cu126` (sm_50 to "
            "sm_90), choose another GPU, or set LDM_DEVICE=cpu"
        )


def _gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "this GPU"


def require_accelerator(device: torch.device, image_size: int) -> None:
    """Refuse to begin a preset of 256 px or more on a CPU, where it would take weeks.

    Raises:
        RuntimeError: says why no GPU was found and how to insist.
    """
    if image_size < 256 or device.type != "cpu" or os.environ.get("LDM_DEVICE") == "cpu":
        return
    raise RuntimeError(
        f"no GPU was found, and faces of {image_size} px need one: {_why_no_gpu()} Presets for a "
        "CPU are `laptop` and `demo`; to insist on this one, set LDM_DEVICE=cpu"
    )


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built without CUDA; see pytorch.org."
    return (
        f"this torch is built for CUDA {torch.version.cuda}. `nvidia-smi` tells whether there is a "
        "GPU and what its driver supports; for an older driver install an older CUDA build "
        "(`--index-url https://download.pytorch.org/whl/cu126`)."
    )


# --- precision ---


def choose_precision(wanted: str, device: torch.device) -> str:
    """The autocast precision that a device computes in: "bf16", "fp16" or "no" (float32).

    "auto" follows `accelerate launch --mixed_precision bf16|fp16`, else takes bfloat16 where the
    hardware has it, float16 on other CUDA devices (a T4, where bfloat16 is emulated), else float32.

    Raises:
        ValueError: an unknown precision, or one that this device cannot compute in.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "auto" and launched != "no":
        wanted = launched
    if wanted == "auto":
        return "bf16" if has_bfloat16(device) else "fp16" if device.type == "cuda" else "no"
    if wanted not in ("bf16", "fp16", "no"):
        raise ValueError(f"mixed_precision {wanted!r}: choose auto, bf16, fp16 or no")
    if wanted == "bf16" and not has_bfloat16(device):
        raise ValueError(
            f"mixed_precision 'bf16': {device.type} has no bfloat16 arithmetic here; use 'auto'"
        )
    return wanted


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has native bfloat16; a T4 emulates it, and torch by default says True."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # The operator is absent where torch is built without oneDNN, as for macOS.
        is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return is_supported is not None and is_supported()
    return device.type == "xpu"  # MPS has it from macOS 14 on, but with kernels known to be wrong


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to "bf16" or "fp16" on a device; "no" leaves float32."""
    dtype = PRECISIONS.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def cast_matrices(model: nn.Module, precision: str) -> None:
    """Cast linear and convolution weights once; autocast does it at every call.

    Results under `autocast` stay the same, bit for bit. The casted parameters are new ones.
    """
    if precision not in PRECISIONS:
        return
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, weight in list(module.named_parameters(recurse=False)):
                half = weight.detach().to(PRECISIONS[precision])
                setattr(module, name, nn.Parameter(half, weight.requires_grad))


def tune_kernels(device: torch.device) -> None:
    """Allow TF32 and cuDNN's search for the fastest convolution; LDM_EXACT=1 forbids both."""
    if device.type == "cuda":
        allowed = os.environ.get("LDM_EXACT") != "1"
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = allowed


def leave_busy_cores() -> None:
    """Compute on the cores that other processes leave idle, one at least; OMP_NUM_THREADS insists.

    The threads of an operator spin where they wait for each other. Beside others that compute, two
    threads on two cores then take longer than one alone, by a factor of 20. Linux only, and only
    what runs at this moment is seen. Another number of threads rounds otherwise.
    """
    if sys.platform != "linux" or "OMP_NUM_THREADS" in os.environ:
        return
    threads = torch.get_num_threads()
    wanted = max(1, min(threads, round(_idle_cores())))
    if wanted < threads:
        print(f"other processes compute here: {wanted} of {threads} threads (OMP_NUM_THREADS)")
        torch.set_num_threads(wanted)


def _idle_cores(seconds: float = 0.3) -> float:
    def ticks() -> list[int]:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]

    before = ticks()
    time.sleep(seconds)
    spent = [now - then for now, then in zip(ticks(), before, strict=True)]
    idle = spent[3] + spent[4]  # and waiting for a disk
    return (os.cpu_count() or 1) * idle / max(1, sum(spent))


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works and pays here: on CUDA with Triton, which needs compute
    capability 7.0 and is not part of torch on Windows.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)


def matrix_rate(device: torch.device, precision: str) -> float | None:
    """Operations a second of the card's matrix units; None where that is not known."""
    if device.type != "cuda" or precision not in PRECISIONS or not torch.cuda.is_available():
        return None
    words = re.split(r"[\s-]+", torch.cuda.get_device_name(device))
    for known, rate in MATRIX_RATES.items():
        if all(word in words for word in known.split()):
            return rate * 1e12
    return None


# --- memory ---


def peak_memory(device: torch.device) -> float:
    """GB that this process took at most so far: of a CUDA device, else of the computer."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed CPU memory in the process within the block; return it to the system at its end.

    glibc maps large tensors one by one and unmaps them when they are freed, so that the kernel
    clears the pages of every activation again, which takes a tenth of a full-size training step and
    almost a third of the encoder's time (measured on two cores). Blocks may nest and run in
    several threads; the effect ends with the last one. Does nothing on other devices, whose
    allocator keeps memory by itself, with another C library, or with LDM_KEEP_MEMORY=0.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    with _blocks_lock:
        _blocks.append(device)
        for option, (kept, _) in MALLOC_OPTIONS.items():
            libc.mallopt(option, kept)
    try:
        yield
    finally:
        with _blocks_lock:
            _blocks.pop()
            if not _blocks:
                for option, (_, usual) in MALLOC_OPTIONS.items():
                    libc.mallopt(option, usual)
            libc.malloc_trim(0)


_blocks: list[torch.device] = []  # that are being executed
_blocks_lock = threading.Lock()


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux" or os.environ.get("LDM_KEEP_MEMORY") == "0":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
