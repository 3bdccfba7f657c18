"""The processes that train one run together, one a GPU: what they share and how they agree.

torch.distributed through accelerate. A process is alone unless a launcher started several.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from custom_datasets.latent_cache import Shard
from models.device import choose_device

SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
}
# How long a process waits for the others: encoding is shared out, saving is short.
PATIENCE = timedelta(minutes=30)


def build_accelerator(tracker: str | None = None, logs: Path | None = None) -> Accelerator:
    """accelerate's view of the processes. Precision and accumulation are the loop's own.

    Args:
        tracker: accelerate's name of one, whose files go to `logs`.

    Raises:
        ValueError: the launcher asks for something that training does not support; names it.
    """
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


def agree(accelerator: Accelerator, value: Any) -> Any:
    """The main process's value, in every process."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


@contextmanager
def together(accelerator: Accelerator, doing: str) -> Iterator[None]:
    """Run a block that fails in every process if it fails in one, so that none waits forever.

    Raises:
        RuntimeError: another process failed; its own message tells why.
    """
    if accelerator.num_processes == 1:
        yield
        return
    try:
        yield
    except Exception:
        gather_object([accelerator.process_index])
        raise
    failed = gather_object([-1])
    others = [index for index in failed if index >= 0]
    if others:
        raise RuntimeError(f"process {min(others)} failed while {doing}: see its message")


@contextmanager
def main_process_first(accelerator: Accelerator, doing: str) -> Iterator[None]:
    """Run a block in the main process before the others begin it, so that they find its files.

    On several machines without a shared folder the first process of each goes first.
    """
    if accelerator.is_local_main_process:
        with together(accelerator, doing):
            yield
        with together(accelerator, doing):
            pass
    else:
        with together(accelerator, doing):
            pass
        with together(accelerator, doing):
            yield


def shard_of(accelerator: Accelerator, folder: Path) -> Shard:
    """This one of the processes that share a folder: of all, or of those of this machine, where
    the folder of the main process cannot be seen from all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wait = accelerator.wait_for_everyone
    if accelerator.num_processes == 1:
        return Shard()
    token = folder / f".{agree(accelerator, f'{socket.gethostname()}-{os.getpid()}')}"
    if accelerator.is_main_process:
        token.touch()
    wait()
    is_seen_by_all = all(gather_object([token.exists()]))
    if accelerator.is_main_process:
        token.unlink()
    if is_seen_by_all:
        return Shard(accelerator.process_index, accelerator.num_processes, wait)
    return Shard(accelerator.local_process_index, int(os.environ["LOCAL_WORLD_SIZE"]), wait)


class ProcessLost(RuntimeError):
    """Another process of this run has ended, so this one cannot continue."""


@contextmanager
def lost_process_named(accelerator: Accelerator) -> Iterator[None]:
    """Turn a collective's error into one that says that another process has ended.

    Raises:
        ProcessLost: says how to resume.
    """
    try:
        yield
    except (RuntimeError, torch.distributed.DistError) as error:
        text = str(error)
        is_collective = isinstance(error, torch.distributed.DistError) or "gloo" in text.lower()
        if accelerator.num_processes == 1 or not is_collective:
            raise
        raise ProcessLost(
            "another process of this run has ended (its message, if it left one, is above). "
            "Nothing that was saved is lost: start the same command again, with any number of "
            f"processes. ({text.splitlines()[0]})"
        ) from error
