"""Run a command and say what it cost."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BITQUILT = str(Path(sys.executable).with_name("bitquilt"))


@dataclass(frozen=True)
class Cost:
    """What a command took, its children included."""

    seconds: float
    peak_gb: float
    """Largest resident memory of any one process, in GB."""
    stdout: str

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s, {self.peak_gb:.2f} GB peak"


def run(*command: str) -> Cost:
    """Run a command to its end; what it prints on stderr is shown as it comes."""
    print("$", " ".join(command), flush=True)
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Cost(time.monotonic() - started, peak_kib * 1024 / 1e9, done.stdout)
