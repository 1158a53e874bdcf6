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


def rows_within(weights: int, columns: int) -> int:
    """Return how many rows have at most so many weights, and at least one.

    It is a power of two: matrices put together in multiples of 32 rows are cut as they would be
    alone, and parts of one matrix as the whole.
    """
    return 1 << (max(1, weights // columns).bit_length() - 1)


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
    rows = rows_within(cpu_chunk if on_cpu else DEVICE_WEIGHTS, columns)
    chunks = [torch.split(part, rows) for part in parts]
    if not on_cpu:
        return [work(*rows) for rows in zip(*chunks, strict=True)]
    return in_threads(work, *chunks)
