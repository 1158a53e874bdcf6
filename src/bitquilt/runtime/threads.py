"""Threads that each compute alone, for many small tensor operations, and one for what waits.

torch splits an operation among threads of its own, which wait for each other at its end. For small
operations the waiting takes far longer than the work, above all on a busy machine (feedback on
matrices of 256 columns: twenty times as long). Here each worker thread has one thread of torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

ThreadResult = TypeVar("ThreadResult")


def in_threads(work: Callable[..., ThreadResult], *items: Iterable[object]) -> list[ThreadResult]:
    """Return ``list(map(work, *items))``, computed in as many threads as torch has."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, *items))
    finally:
        # a thread's setting is torch's default for threads that start later
        torch.set_num_threads(threads)


class BackgroundTask:
    """A thread for what waits on disks while another one computes; it takes one call at a time.

    It is a context manager: at its end no call is under way, and what a call raised is raised.
    """

    def __init__(self) -> None:
        """Start the thread."""
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def do(self, work: Callable[..., None], *items: object) -> None:
        """Wait for the call before, raise what it raised, and start ``work(*items)``."""
        self._wait()
        self._last = self._pool.submit(work, *items)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> BackgroundTask:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the last call; raise what it raised, unless the block itself raised."""
        self._pool.shutdown()
        if error is None:
            self._wait()
