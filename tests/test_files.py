"""Files that are whole, that others may read, and that are waited for aloud."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from config import ROOT
from files import InUse, locked, replacing

HOLDER = """
import sys
from pathlib import Path
from files import locked
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen:
    """Another process that holds `tmp_path / "lock"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()


def test_who_waits_for_another_process_is_told_which(
    holder: subprocess.Popen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []
    monkeypatch.setattr("files.QUIET_SECONDS", 0.1)

    def let_go(text: str, **_: object) -> None:
        said.append(text)
        holder.communicate("go on\n")

    monkeypatch.setattr("builtins.print", let_go)
    with locked(tmp_path / "lock"):
        assert f"process {holder.pid} on" in said[0]


def test_who_does_not_wait_is_refused_until_the_holder_is_killed(
    holder: subprocess.Popen, tmp_path: Path
) -> None:
    with pytest.raises(InUse, match=f"process {holder.pid}"), locked(tmp_path / "lock", wait=False):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", wait=False):
        assert f"process {os.getpid()}" in (tmp_path / "lock.holder").read_text()


# NFS without its lock daemon; Lustre without -o flock, and some FUSE mounts.
@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_once_and_worked_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: int,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    for wait in (True, False):
        with locked(tmp_path / "lock", wait):
            pass
    assert capsys.readouterr().err.count("without locks") == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_mode_that_the_umask_gives_whoever_writes_it(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "text") as path:
            path.write_text("text")
        with replacing(tmp_path / "weights") as path:
            save_file({"a": torch.zeros(2)}, path)
    finally:
        os.umask(before)
    for name in ("text", "weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "text") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="12 requested"), replacing(tmp_path / "text"):
        raise OSError("12 requested and 0 written")  # numpy's, of a full disk
    with pytest.raises(OSError, match="text"), replacing(tmp_path / "text"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("text", "before")]
