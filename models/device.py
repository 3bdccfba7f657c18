"""The device: which one computes, in which precision, and what memory its process keeps.

One place for notebooks, scripts, page and evaluation. Environment variables: LDM_DEVICE ("cpu",
"cuda", "mps", "xpu") insists on a device; LDM_EXACT=1 switches TF32 and cuDNN's autotuner off in
training.
"""

import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import nn

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
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
# freed memory. Only the first arena grows without bound, so threads share it.
MALLOC_OPTIONS = {-1: -1, -4: 0, -8: 1}


def choose_device() -> torch.device:
    """The device of this process: LDM_DEVICE, else the first available of CUDA, XPU and CPU.

    MPS only by LDM_DEVICE: its kernels have given wrong gradients without an error, among them
    those of BatchNorm in channels-last layout (PyTorch's #175189) and of batches that change in
    size (#177116).
    Under `accelerate launch` each process takes the GPU of its local rank, and `--cpu` the CPU.

    Raises:
        ValueError: LDM_DEVICE names a kind of device that is not available.
    """
    is_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    modules = {"cuda": torch.cuda, "xpu": torch.xpu, "cpu": torch.cpu, "mps": torch.mps}
    kinds = [name for name, module in modules.items() if module.is_available()]
    kind = os.environ.get("LDM_DEVICE") or ("cpu" if is_cpu else kinds[0])
    if kind not in kinds:
        raise ValueError(
            f"LDM_DEVICE={kind}: not one of the kinds of devices here ({', '.join(kinds)}); "
            "CUDA_VISIBLE_DEVICES or ZE_AFFINITY_MASK choose a card"
        )
    if kind in ("cuda", "xpu"):
        # Some launchers show each process its own card alone.
        count = getattr(torch, kind).device_count()
        return torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")) % count)
    return torch.device(kind)


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps back to a GPU, so that larger blocks fit, and forget its peak.

    Older releases refuse it for good after a capture that failed (mended in PyTorch's #180395).
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:
        if "captures_underway" not in str(error):
            raise
    if torch.cuda.is_initialized():  # which torch.cuda.empty_cache asks by itself
        torch.cuda.reset_peak_memory_stats(device)


def require_accelerator(device: torch.device, image_size: int) -> None:
    """Refuse to begin a preset of 256 px or more on a CPU, where it would take weeks.

    Raises:
        RuntimeError: says how to look for it and how to insist.
    """
    if image_size < 256 or device.type != "cpu" or os.environ.get("LDM_DEVICE") == "cpu":
        return
    raise RuntimeError(
        f"no GPU was found by torch {torch.__version__} (built for CUDA {torch.version.cuda}), and "
        f"faces of {image_size} px need one; `nvidia-smi` tells whether there is one and what its "
        "driver supports. Presets for a CPU are `laptop` and `demo`; to insist, set LDM_DEVICE=cpu"
        " or, on a Mac, LDM_DEVICE=mps"
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
    is_launched = wanted == "auto" and launched != "no"
    if is_launched:
        wanted = launched
    if wanted == "auto":
        return "bf16" if has_bfloat16(device) else "fp16" if device.type == "cuda" else "no"
    if wanted not in ("bf16", "fp16", "no"):
        raise ValueError(f"mixed_precision {wanted!r}: choose auto, bf16, fp16 or no")
    if wanted == "bf16" and not has_bfloat16(device):
        asked = "accelerate launch --mixed_precision" if is_launched else "mixed_precision"
        raise ValueError(
            f"{asked} bf16: {device.type} has no bfloat16 arithmetic here; leave it out, or take "
            "fp16 (on a GPU) or no"
        )
    return wanted


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has native bfloat16. torch's own check asks the current card, not this one,
    and counts a T4's emulation.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # The operator is absent where torch is built without oneDNN, as for macOS.
        is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        return is_supported is not None and is_supported()
    return device.type == "xpu"  # MPS has it from macOS 14 on, see `choose_device`


def unscaled_precision(device: torch.device) -> str:
    """Of autocast in a training whose loss is not scaled, which float16 would need: its small
    gradients become zero.
    """
    return "bf16" if has_bfloat16(device) else "no"


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
    threads on two cores then take longer than one alone, by a factor of 20. Only what runs at this
    moment is seen. Another number of threads rounds otherwise.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    idle = psutil.cpu_count() * (1 - psutil.cpu_percent(interval=0.3) / 100)
    threads = torch.get_num_threads()
    wanted = max(1, min(threads, round(idle)))
    if wanted < threads:
        print(f"other processes compute here: {wanted} of {threads} threads (OMP_NUM_THREADS)")
        torch.set_num_threads(wanted)


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
    """GB that this process took at most: of CUDA's since `empty_cache`, else of the computer's."""
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
    almost a third of the encoder's time (measured on two cores). The options stay set; blocks may
    nest. Does nothing on other devices, whose allocator keeps memory by itself, and with another C
    library.
    """
    if sys.platform != "linux" or device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in MALLOC_OPTIONS.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        libc.malloc_trim(0)
