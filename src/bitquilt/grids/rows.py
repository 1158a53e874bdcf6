"""Working on a matrix a few rows at a time, in threads: rows are independent in every grid."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

CPU_CHUNK = 1 << 15
"""Weights handed to ``work`` at a time on a CPU. Temporaries stay in the processor's cache, and
torch does not split operations of this size among its own threads, which wait for each other at
every step and come to a standstill on a busy machine."""
DEVICE_CHUNK = 1 << 24
"""The same on any other device, where only the memory of the temporaries counts."""


def by_rows(work: Callable[..., Result], columns: int, *parts: Tensor) -> list[Result]:
    """Call ``work`` on a few rows of every part; on a CPU in as many threads as torch has.

    Args:
        work: takes the same rows of each part.
        columns: weights in a row.
        parts: tensors with one first-axis entry for each row of a matrix, all on one device.

    Returns:
        What ``work`` returned, in the order of the rows.
    """
    on_cpu = parts[0].device.type == "cpu"
    rows = max(1, (CPU_CHUNK if on_cpu else DEVICE_CHUNK) // columns)
    chunks = [torch.split(part, rows) for part in parts]
    if not on_cpu:
        return [work(*rows) for rows in zip(*chunks, strict=True)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, *chunks))
