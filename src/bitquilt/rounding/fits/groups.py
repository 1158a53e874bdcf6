"""Tools for fits of small groups: magnitudes near one, and numbers as a file stores them.

Letters: R rows, C columns, N groups along a row, k weights in a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import Unpacked
from bitquilt.qtypes.rows import CPU_WEIGHTS, by_rows

TINY = torch.finfo(torch.float32).tiny
"""The least normal float32: denominators are kept above it."""
EXPONENTS = (-126, 126)
"""A power of two within these has a reciprocal that is a normal number too."""


def fit_by_rows(
    weight: Tensor,
    importance: Tensor,
    size: int,
    fit: Callable[[Tensor, Tensor], Unpacked],
    cpu_chunk: int = CPU_WEIGHTS,
) -> Unpacked:
    """Fit a matrix a few rows at a time.

    Args:
        weight: float32 [R, C].
        importance: float32 [R, C].
        size: k.
        fit: given weights and importance as groups [R, N, k].
        cpu_chunk: weights at a time on a CPU.
    """
    groups = [torch.unflatten(each, 1, (-1, size)) for each in (weight, importance)]
    chunks = by_rows(fit, weight.shape[1], *groups, cpu_chunk=cpu_chunk)
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def power_of_two(magnitudes: Tensor) -> Tensor:
    """Return the least power of two above each magnitude (1 for zero), within float32's range.

    Dividing by it is exact and keeps squares from overflowing and underflowing.
    """
    exponents = torch.frexp(magnitudes).exponent.clamp(*EXPONENTS)
    return torch.ldexp(torch.ones_like(magnitudes), exponents)


def inverse(scales: Tensor) -> Tensor:
    """Return 1 / scale, and 0 for 0: every weight then goes to the level next to zero."""
    return torch.where(scales == 0, 0.0, 1.0 / scales)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum products over groups: [R, N, k] and [R, N, k] to [R, N, 1]."""
    sums: Tensor = torch.linalg.vecdot(a, b)
    return sums.unsqueeze(-1)


@dataclass(frozen=True)
class Storage:
    """How the number a of each group is stored: as ``unit`` a + ``origin``, rounded to ``dtype``.

    ``unit`` (powers of two) and ``origin`` are float32 [R, N, 1], as the numbers are.
    """

    dtype: torch.dtype
    unit: Tensor
    origin: Tensor | float = 0.0

    def stored(self, numbers: Tensor) -> Tensor:
        """Return numbers as the file holds them, in ``dtype``."""
        return (numbers * self.unit + self.origin).to(self.dtype)

    def read(self, stored: Tensor) -> Tensor:
        """Undo :meth:`stored`: return float32 numbers."""
        return (stored.float() - self.origin) / self.unit

    def nearest(self, numbers: Tensor) -> Tensor:
        """Return the nearest numbers that can be stored."""
        return self.read(self.stored(numbers))

    def neighbour(self, numbers: Tensor, steps: int) -> Tensor:
        """Return the storable numbers so many places further from a stored zero."""
        bits = self.stored(numbers).view(torch.int16) + steps
        return self.read(bits.view(self.dtype))
