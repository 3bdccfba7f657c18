"""Writes files whole or not at all, and keeps processes out of each other's way.

The only place that knows how: every other module writes through `replacing` and locks through
`locked`. A reader never sees half a file; after a crash or a power cut, either the old file or the
new one is there.
"""

import errno
import functools
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# Suffix of files that an interrupted `replacing` leaves behind; `remove_unfinished` deletes them.
UNFINISHED = ".unfinished"
QUIET_SECONDS = 1.0  # of waiting for a lock, before the wait is told
SYNCS_FOLDERS = os.name != "nt"  # Windows has no such call, and needs none
# What file systems without locks answer: NFS without its lock daemon, Lustre, some FUSE mounts.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class InUse(RuntimeError):
    """Another process holds a lock."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success it becomes `path`, on failure it is removed.

    The content reaches the disk before the name does, and the name before this returns. Processes
    that write the same file at once do not disturb each other: the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        temporary.touch()  # with the mode of any new file; safetensors makes another for its owner
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        options: of `json.dumps`.
    """
    write_text(path, json.dumps(value, indent=2, **options) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    if not SYNCS_FOLDERS:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems refuse to sync a folder; they order names themselves.
        if error.errno not in NO_LOCKS | {errno.EINVAL}:
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, pattern: str = "*") -> None:
    """Delete what killed processes left of files that match. Call it while holding a lock."""
    for path in folder.glob(f"{pattern}{UNFINISHED}"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a lock file; the system drops it when its process ends.

    On a file system without locks this says so once and continues without one.

    Args:
        wait: wait for the process that holds the lock, and name it; False refuses at once.

    Raises:
        InUse: another process holds it, and `wait` is False. Names that process and its start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A generator may end in another thread. A soft lock would outlive a machine that died.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, path, wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_no_locks(path.parent)
    try:
        if lock.is_locked:
            _note_holder(path)
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, wait: bool) -> None:
    try:
        lock.acquire(timeout=QUIET_SECONDS if wait else 0)
    except Timeout:
        if not wait:
            raise InUse(
                f"{path.parent} is in use by {_holder(path)}: wait for it or stop it"
            ) from None
        print(f"waiting for {_holder(path)}, which works in {path.parent}", flush=True)
        lock.acquire()


# The holder is noted in a second file: Windows lets nobody read a locked one.
def _note_holder(path: Path) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    _note(path).write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")


def _holder(path: Path) -> str:
    note = _note(path)
    return (note.read_text().strip() if note.is_file() else "") or "another process"


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")


@functools.cache  # it is said once
def _say_no_locks(folder: Path) -> None:
    print(
        f"{folder} is on a file system without locks: nothing keeps a second process out. "
        "Start one at a time.",
        file=sys.stderr,
    )
