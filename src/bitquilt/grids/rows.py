"""Working on a matrix a few rows at a time, in threads: rows are independent in every grid."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

CHUNK_WEIGHTS = 1 << 15
"""Weights handed to ``work`` at a time. Temporaries stay in the processor's cache, and torch does
not split operations of this size among its own threads, which wait for each other at every step
and come to a standstill on a busy machine."""


def by_rows(work: Callable[..., Result], columns: int, *parts: Tensor) -> list[Result]:
    """Call ``work`` on a few rows of every part, in as many threads as torch has.

    Args:
        work: takes the same rows of each part.
        columns: weights in a row.
        parts: tensors with one first-axis entry for each row of a matrix.

    Returns:
        What ``work`` returned, in the order of the rows.
    """
    rows = max(1, CHUNK_WEIGHTS // columns)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, *(torch.split(part, rows) for part in parts)))
