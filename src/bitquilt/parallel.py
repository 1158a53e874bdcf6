"""Threads that each compute by themselves: for many small tensor operations.

torch splits an operation among threads of its own, which wait for each other at its end. For small
operations the waiting takes far longer than the work, above all on a busy machine (feedback on
matrices of 256 columns: twenty times as long). Here each worker thread has one thread of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(work: Callable[..., Result], *items: Iterable[object]) -> list[Result]:
    """``map(work, *items)`` as a list, in as many threads as torch has."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, *items))
    finally:
        # a thread's setting is torch's default for threads that start later
        torch.set_num_threads(threads)
