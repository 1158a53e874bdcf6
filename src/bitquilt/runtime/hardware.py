"""Measured limits of this machine, which speeds are compared with."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

WIDE = 1024
"""The side of the matrices that are multiplied to measure arithmetic."""
LARGE = 1 << 26
"""How many floats are summed to measure memory: 256 MB, more than a cache holds."""
MEASURING_SECONDS = 0.5
"""How long each limit is measured."""
ENERGY = Path("/sys/class/powercap/intel-rapl:0")
"""Linux counts the energy of the first CPU package here, in microjoules, where it may be read."""


@dataclass(frozen=True)
class Hardware:
    """The name and the measured limits of a processor."""

    name: str
    cores: int
    bandwidth: float
    """Bytes that all cores together read from memory in a second."""
    flops: float
    """Float32 operations in a second of matrix products."""

    @classmethod
    def measured(cls) -> Hardware:
        """Measure this machine, which takes about a second."""
        numbers, square = torch.ones(LARGE), torch.ones(WIDE, WIDE)
        return cls(
            processor(),
            os.cpu_count() or 1,
            4 * LARGE * rate(numbers.sum),
            2 * WIDE**3 * rate(lambda: square @ square),
        )


def rate(work: Callable[[], object]) -> float:
    """Return how often per second some work can be done: the best of several times.

    The best time is the one that other programs disturbed least.
    """
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURING_SECONDS:
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return 1 / best


def processor() -> str:
    """Return the processor's name as the system gives it."""
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, its file mappings included."""
    nbytes: int = psutil.Process(pid).memory_info().rss
    return nbytes


def joules() -> float | None:
    """Return a counter of the energy used, in joules; None where the system has none."""
    try:
        return int((ENERGY / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
