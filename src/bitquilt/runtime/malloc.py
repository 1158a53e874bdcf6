"""The C library's heap, told to keep what is freed.

glibc hands blocks of more than 32 MB, and what is free at the heap's end, back to the kernel at
once, and the next block of logits or hidden states is zeroed page by page again: a fifth of a
forward pass and a third of a comparison of logits (docs/decisions/malloc.md).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache

# of mallopt(3)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 1 << 28
"""Bytes of the largest block that is kept. Larger ones are tables of large vocabularies: few, and
too much memory to have lying about."""
GROWTH = 1 << 26
"""Bytes by which the heap grows at a time, at least."""


def keep_freed_memory() -> None:
    """From now on, memory that this process frees stays with it until :func:`trim`.

    For programs that compute and end; elsewhere than in glibc it does nothing.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_M_TOP_PAD, GROWTH)


def trim() -> None:
    """Return all that is free to the kernel: the next stage needs blocks of other sizes.

    Models that hold their own methods as weights are free only once cycles are collected.
    """
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is that one."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
