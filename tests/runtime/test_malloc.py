"""Freed memory stays with the process until it is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
from bitquilt.runtime.malloc import trim, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

def after(megabytes):
    text = b"x" * (megabytes << 20)
    del text
    return resident()

before = resident()
print(after(100) - before)
keep_freed_memory()
print(after(100) - before)
trim()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has such a heap")
def test_freed_blocks_stay_until_they_are_given_back():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    at_first, kept, given_back = (float(line) for line in done.stdout.split())
    assert at_first < 20
    assert kept > 80
    assert given_back < 20
