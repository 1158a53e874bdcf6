"""Memory of this machine, how many other programs use it, and how threads wait among them.

Cheap to import: libraries read how to wait when they are loaded, so it is decided before that.
"""

from __future__ import annotations

import os

import psutil

BUSY = 1.25
"""From so many waiting programs for each core on, it is said that others use the machine."""
WAITING = "OMP_WAIT_POLICY"


def memory_of_machine() -> int:
    """Return the bytes of main memory, used or not."""
    total: int = psutil.virtual_memory().total
    return total


def load_per_core() -> float:
    """Return how many programs wait for each core, over a minute."""
    load: float = psutil.getloadavg()[0]
    return load / (os.cpu_count() or 1)


def wait_asleep_if_busy() -> None:
    """Let threads sleep while they wait for each other, if other programs use the machine.

    OpenMP's threads, which are torch's and llama.cpp's, wait by looking again and again. The one
    that is waited for may have no core meanwhile: docs/decisions/waiting.md. Where nobody else
    computes, looking is faster. The user's own setting stays.
    """
    if load_per_core() > BUSY:
        os.environ.setdefault(WAITING, "PASSIVE")
