"""Settings of the C library's malloc, so that freed memory is kept and reused.

glibc hands blocks of more than 32 MB, and what is free at the heap's end, back to the kernel at
once, and the next block of logits or hidden states is zeroed page by page again: a fifth of a
forward pass and a third of a comparison of logits (docs/decisions/malloc.md).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache

import psutil

# of mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 1 << 28
"""The largest block, in bytes, that is kept. Larger ones are tables of large vocabularies: they are
few, and too much memory to keep unused."""
GROWTH = 1 << 26
"""The heap grows by at least this many bytes at a time."""
GROWN = 1 << 27
"""Cycles are looked for where this many bytes have been added since: that takes as long as a small
stage, since it looks at all objects of all modules."""
_least = 0
"""The fewest bytes that this process has had after a trim since cycles were last looked for."""


def keep_freed_memory() -> None:
    """Keep the memory that this process frees, from now on and until :func:`trim`.

    This is for programs that compute and end. With a C library other than glibc it does nothing.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_M_TOP_PAD, GROWTH)


def trim() -> None:
    """Give all free memory back to the kernel: the next stage needs blocks of other sizes.

    Models that hold their own methods as weights are free only once cycles are collected.
    """
    global _least
    if _held() >= _least + GROWN:
        gc.collect()
        _least = sys.maxsize
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    _least = min(_least, _held())


def _held() -> int:
    """Return the bytes that this process has, those of a GPU among them."""
    torch = sys.modules.get("torch")  # who has not imported it has nothing there
    on_gpu = torch.cuda.memory_allocated() if torch and torch.cuda.is_initialized() else 0
    return int(psutil.Process().memory_info().rss + on_gpu)


@cache
def _glibc() -> ctypes.CDLL | None:
    """Return this process's C library if it is glibc."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
