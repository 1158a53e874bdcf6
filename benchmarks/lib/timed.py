"""Run a command and say what it cost."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BITQUILT = str(Path(sys.executable).with_name("bitquilt"))
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes that getrusage(2) counts in: macOS says bytes, Linux KiB."""


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    peak_gb: float
    """Resident memory of the largest process so far, of this command or an earlier one, in GB."""
    stdout: str

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.peak_gb:.2f} GB peak of the largest process"


def run(*command: str) -> Cost:
    """Run a command to its end; what it prints on stderr is shown as it comes."""
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS_UNIT
    return Cost(time.monotonic() - started, peak / 1e9, done.stdout)
