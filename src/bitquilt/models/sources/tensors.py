"""Checks on loaded tensors that every source shares."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from bitquilt.errors import UserError
from bitquilt.models.checkpoint import PLAIN_TYPES, Finding

SAMPLED = 16
"""Rows that a look at a matrix reads."""


def checked(tensor: torch.Tensor, name: str, shape: tuple[int, ...], file: Path) -> torch.Tensor:
    """The tensor, if it has that shape and only finite values.

    Raises:
        UserError: it has another shape, or NaN or infinite values.
    """
    if tuple(tensor.shape) != shape:
        raise UserError(
            f"{name} in {file} is {list(tensor.shape)}, expected {list(shape)}; download it again"
        )
    if all_finite(tensor):
        return tensor
    broken = tensor.numel() - int(torch.isfinite(tensor).sum())
    raise UserError(
        f"{name} in {file} holds {broken} NaN or infinite values of {tensor.numel()}; the "
        "checkpoint is damaged: download it again"
    )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # one pass without a temporary: a sum is finite only if no addend is NaN or infinite
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def rows_to_look_at(rows: int) -> list[int]:
    """The rows of a matrix that a look at it reads, from the first to the last."""
    return sorted({place * (rows - 1) // (SAMPLED - 1) for place in range(SAMPLED)})


def bytes_by_type(dtypes: dict[str, str], nbytes: dict[str, int]) -> dict[str, int]:
    """Storage type → bytes of the tensors on it, most first."""
    total: Counter[str] = Counter()
    for name, dtype in dtypes.items():
        total[dtype] += nbytes[name]
    return dict(total.most_common())


def about_quantization(dtypes: dict[str, str]) -> list[Finding]:
    """What the matrices are stored as, if that has already cost accuracy."""
    lossy = sorted(set(dtypes.values()) - PLAIN_TYPES)
    if not lossy:
        return []
    return [
        Finding(
            "quantization",
            f"The source is already quantized ({', '.join(lossy)}), and files made from it are "
            "measured against it; the original checkpoint would be a better start.",
        )
    ]
