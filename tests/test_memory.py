"""Freed memory stays with the process inside the block and goes back at its end."""

import sys

import pytest
from conftest import run_python

# 40 tensors of 64 MB, one after the other, once more after warming up; prints page faults and
# resident megabytes inside the block and after it.
CODE = """
import resource, torch
from pathlib import Path
from models.device import freed_memory_kept

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def fill():
    for _ in range(40):
        torch.empty(2**24).fill_(1)

def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize() / 2**20

before = resident()
with freed_memory_kept(torch.device('cpu')):
    fill()
    first = faults()
    fill()
    print(faults() - first, resident() - before)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for it")
def test_large_tensors_take_no_new_pages_inside_and_leave_none_behind() -> None:
    faults, inside, after = map(float, run_python("-c", CODE).stdout.split())
    assert faults < 2_000  # one tensor alone has 16,384 pages
    assert inside > 60
    assert after < 30
