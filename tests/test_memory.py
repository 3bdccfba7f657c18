"""Freed memory stays with the process inside the block and goes back at its end."""

import os
import subprocess
import sys

import pytest

from config import ROOT

# 40 tensors of 64 MB, one after the other, once more after warming up; prints page faults and
# resident megabytes inside the block and after it.
CODE = """
import resource, threading, torch
from pathlib import Path
from models.device import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    for _ in range(40):
        torch.empty(2**24).fill_(1)

def use():
    global first
    fill()
    first = faults()
    fill()

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 2**20

before = resident()
with freed_memory_kept(torch.device('cpu')):
    {how}
    print(faults() - first, resident() - before)
print(resident() - before)
"""
IN_A_THREAD = "thread = threading.Thread(target=use); thread.start(); thread.join()"


def measured(how: str, **environment: str) -> tuple[float, float, float]:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(how=how)],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    faults, inside, after = map(float, done.stdout.split())
    return faults, inside, after


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for it")
@pytest.mark.parametrize("how", ["use()", IN_A_THREAD])
def test_large_tensors_take_no_new_pages_inside_and_leave_none_behind(how: str) -> None:
    faults, inside, after = measured(how)
    assert faults < 2_000  # one tensor alone has 16,384 pages
    assert inside > 60
    assert after < 30
