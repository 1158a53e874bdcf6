"""What this machine can do at best, measured: the limits that speeds are held against."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

WIDE = 1024
"""Side of the matrices that are multiplied."""
LARGE = 1 << 26
"""Floats that are summed: 256 MB, which no cache holds."""
MEASURING_SECONDS = 0.5
ENERGY = Path("/sys/class/powercap/intel-rapl:0")
"""Counts the microjoules of the first CPU package, where the kernel lets us read it."""


@dataclass(frozen=True)
class Hardware:
    """Limits of the processor."""

    name: str
    cores: int
    bandwidth: float
    """Bytes a second read from memory, all cores together."""
    flops: float
    """Float32 operations a second in a matrix product."""

    @classmethod
    def measured(cls) -> Hardware:
        """In about a second."""
        numbers, square = torch.ones(LARGE), torch.ones(WIDE, WIDE)
        return cls(
            processor(),
            os.cpu_count() or 1,
            4 * LARGE * rate(numbers.sum),
            2 * WIDE**3 * rate(lambda: square @ square),
        )


def rate(work: Callable[[], object]) -> float:
    """How often a second it can be done: the best of several times, which others disturb least."""
    work()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < MEASURING_SECONDS:
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return 1 / best


def processor() -> str:
    """Its name, where the system tells it."""
    if platform.system() == "Linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_bytes(pid: int) -> int:
    """Memory that a process has, its file mappings included."""
    if sys.platform == "linux":  # where ps may be missing, in a container
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    asked = ["ps", "-o", "rss=", "-p", str(pid)]
    kibibytes = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return 1024 * int(kibibytes)


def joules() -> float | None:
    """A count that grows with the energy used; None where the system does not tell."""
    try:
        return int((ENERGY / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
