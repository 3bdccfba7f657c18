"""The processes that train one run together, one a GPU: how they agree, and how they are stopped.

torch.distributed through accelerate. A process is alone unless a launcher started several. Several
machines share the folder of the repository.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
)

from models.device import choose_device

SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
}
# How long a process waits for the others: for the main one, while it downloads and looks through
# the faces, and in an evaluation for numbers, which take a quarter of an hour or more for 50,000
# pictures. One that has ended is noticed at once, by the launcher.
PATIENCE = timedelta(hours=12)
# Ctrl-C; the end of a job; a closed terminal; SLURM's warning before its time limit. Windows
# knows the first two.
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


def build_accelerator(tracker: str | None = None, logs: Path | None = None) -> Accelerator:
    """accelerate's view of the processes. Precision and accumulation are the loop's own.

    Args:
        tracker: accelerate's name of one, whose files go to `logs`.

    Raises:
        ValueError: the launcher asks for something that training does not support, or the tracker
            is not there, in which case accelerate would log nothing.
    """
    if tracker is not None and tracker not in (known := [*map(str, get_available_trackers())]):
        raise ValueError(
            f"training.tracker: {tracker!r} is not installed or unknown; here are {known}, or None"
        )
    accelerator = Accelerator(
        mixed_precision="no",
        cpu=choose_device().type == "cpu" or None,
        log_with=tracker,
        project_dir=logs,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: a model of this size fits on "
            "every GPU. Launch with --multi_gpu, see docs/gpus.md"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "--gradient_accumulation_steps is not supported: set training.micro_batch_size, which "
            "gives the same update as the whole batch"
        )
    return accelerator


@contextmanager
def together(accelerator: Accelerator | PartialState, doing: str) -> Iterator[None]:
    """Run a block that fails in every process if it fails in one, so that none waits forever.

    Raises:
        RuntimeError: another process failed; its own message tells why.
    """
    try:
        yield
    except Exception:
        gather_object([accelerator.process_index])
        raise
    others = [index for index in gather_object([-1]) if index >= 0]
    if others:
        raise RuntimeError(f"process {min(others)} failed while {doing}: see its message")


def require_same(found: object, what: str) -> None:
    """Refuse to go on where processes found different things: what they do next, they do together.

    Raises:
        ValueError: they differ.
    """
    everyones = sorted({str(each) for each in gather_object([found])})
    if len(everyones) > 1:
        raise ValueError(
            f"{what} differs between processes: {'; '.join(everyones)}. All machines need the same "
            "files"
        )


@contextmanager
def main_process_first(accelerator: Accelerator | PartialState, doing: str) -> Iterator[None]:
    """Run a block in the first process of each machine before the others begin it, so that they
    find its files.
    """
    for is_mine in (accelerator.is_local_main_process, not accelerator.is_local_main_process):
        with together(accelerator, doing):
            if is_mine:
                yield


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Turn the first of these signals into a set event, so that the current step is finished.

    A second one of the same kind takes effect at once. One that is ignored stays so: under `nohup`
    a closed terminal stops nothing. Outside the main thread nothing is changed: Python delivers no
    signals there.
    """
    stop = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
