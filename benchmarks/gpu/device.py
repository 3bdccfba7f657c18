"""What differs from device to device: its clock, memory, driver, and what makes the host wait."""

import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import measure
from models.device import PRECISIONS, has_bfloat16

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default)
PEAK = Path("/proc/self/clear_refs")  # "5" makes Linux forget a process's peak


def seconds(call: Callable[[], Any], device: torch.device, rounds: int = 1) -> float:
    """Seconds a call takes, the mean over rounds, until the device has finished all of them."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(rounds):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / rounds


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    torch.get_device_module(device).synchronize()


def forget_peak(device: torch.device) -> None:
    """Reset the peak of memory."""
    module = torch.get_device_module(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.empty_cache()
        module.reset_peak_memory_stats()
    elif device.type == "cpu" and PEAK.exists():
        PEAK.write_text("5")


def peak_bytes(device: torch.device) -> float | None:
    """The most memory that tensors took on the device; of a CPU, that the process took; None: this
    device does not count it.
    """
    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        return float(module.max_memory_allocated())
    return measure.peak_memory() if device.type == "cpu" and PEAK.exists() else None


def precisions(device: torch.device) -> list[str]:
    """The precisions that a device computes in; a CPU takes fifty times as long in float16."""
    half = ["fp16"] if device.type in ("cuda", "xpu") else []
    return ["no", *half, *(["bf16"] if has_bfloat16(device) else [])]


def matrix_rate(precision: str, size: int, device: torch.device) -> float:
    """Operations a second of large matrix products, which is what the device can do at best."""
    dtype = PRECISIONS.get(precision, torch.float32)
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    rounds = 20
    seconds(lambda: left @ right, device, rounds=3)
    return 2 * size**3 / seconds(lambda: left @ right, device, rounds)


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """Collects what makes the host wait for the device within the block."""
    waits: list[str] = []
    if device.type != "cuda":
        with _ReadsNoted(waits):
            yield waits
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits += [str(entry.message) for entry in caught if "synchroniz" in str(entry.message)]


class _ReadsNoted(TorchDispatchMode):
    """Notes what the host reads, where the driver does not tell."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        if operator in READS and not _is_on_same_device(args, result):
            self.waits.append(str(operator))
        return result


def _is_on_same_device(args: Any, result: Any) -> bool:
    """Whether a result stays where it was; a plain number does not."""
    devices = {leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    return isinstance(result, torch.Tensor) and devices == {result.device.type}


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, commit, card and driver."""
    return measure.machine(device) | {"card": _card(device), "driver": _driver(device)}


def _card(device: torch.device) -> str:
    if device.type == "cuda":
        values = torch.cuda.get_device_properties(device)
        return (
            f"{values.name}, {values.total_memory / 2**30:.0f} GiB, "
            f"{values.multi_processor_count} multiprocessors"
        )
    if device.type == "xpu":
        return torch.xpu.get_device_name(device)
    return f"{device.type}: {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor() or platform.machine()


def _driver(device: torch.device) -> str:
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return platform.platform()
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"  # in rows of float32
    versions = f"CUDA {torch.version.cuda}, TF32 {tf32}"
    answer = (done.stdout or done.stderr or "unknown").splitlines()[0]
    return f"driver {answer}, {versions}"
