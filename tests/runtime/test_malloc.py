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


LARGE_CYCLE = """
from bitquilt.runtime.malloc import trim

class Node:
    pass

def forget(megabytes):
    node = Node()
    node.itself, node.text = node, b"x" * (megabytes << 20)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

trim()
before = resident()
forget(60)
trim()
print(resident() - before)
forget(200)
trim()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="/proc is Linux's")
def test_cycles_are_looked_for_once_they_may_hold_much():
    done = subprocess.run([sys.executable, "-c", LARGE_CYCLE], capture_output=True, text=True)
    little, much = (float(line) for line in done.stdout.split())
    assert little > 50
    assert much < 20
