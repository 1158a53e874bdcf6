"""Work on a matrix a few rows at a time, in threads: rows are independent in every type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from bitquilt.runtime.threads import in_threads

RowsResult = TypeVar("RowsResult")

CPU_WEIGHTS = 1 << 18
"""Weights that go through at a time on a CPU. Temporaries of more fall out of the cache; with
fewer, threads wait for each other to let go of Python (on 1 << 15 decoding takes four times as
long)."""
DEVICE_WEIGHTS = 1 << 24
"""Weights that go through at a time on any other device, where only memory counts."""


def by_rows(
    work: Callable[..., RowsResult], columns: int, *parts: Tensor, cpu_chunk: int = CPU_WEIGHTS
) -> list[RowsResult]:
    """Call ``work`` on a few rows of every part; on a CPU in as many threads as torch has.

    Args:
        work: takes the same rows of each part.
        columns: weights in a row.
        parts: tensors with one first-axis entry for each row of a matrix, all on one device.
        cpu_chunk: weights at a time on a CPU, at most, for work of a size of its own.

    Returns:
        What ``work`` returned, in the order of the rows.
    """
    on_cpu = parts[0].device.type == "cpu"
    most = max(1, (cpu_chunk if on_cpu else DEVICE_WEIGHTS) // columns)
    # a power of two: matrices put together in multiples of 32 rows are cut as they would be alone
    rows = 1 << (most.bit_length() - 1)
    chunks = [torch.split(part, rows) for part in parts]
    if not on_cpu:
        return [work(*rows) for rows in zip(*chunks, strict=True)]
    return in_threads(work, *chunks)
