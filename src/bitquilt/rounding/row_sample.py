"""A few rows that stand for a whole matrix: what it costs on a type is known from them.

Rows are rounded independently, so the cost of a matrix is a sum over rows. Rows are drawn with
probabilities proportional to what they would cost if all were equally far off, and each counts for
the inverse of its probability (Hansen & Hurwitz 1943). As all rows are about equally far off,
relative to their size, a few tell the sum well; the same rows on every type tell types apart.

Letters: R rows, n rows that are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHARE = 8
"""One row in so many is drawn."""
LEAST_SAMPLED_ROWS = 128
"""As many are drawn at least, of a matrix that has them."""


@dataclass(frozen=True)
class RowSample:
    """Rows of one matrix."""

    rows: Tensor
    """int64 [n], ascending."""
    stands_for: Tensor
    """float64 [n]: by how much the cost of each is to be multiplied."""

    def total(self, costs: Tensor) -> float:
        """Estimate the cost of the matrix, given that of the rows [n]."""
        return float(self.stands_for @ costs.cpu().double())


def sample_rows(sizes: Tensor, wanted: int | None = None) -> RowSample:
    """Draw rows systematically along the sum of their sizes, the same ones every time.

    Args:
        sizes: what each row would cost if all were equally far off, [R], none negative; or another
            number that goes with it.
        wanted: how many rows are drawn, some more than once; about one in ``SHARE`` if not given.
    """
    sizes = sizes.cpu().double()
    count = len(sizes)
    wanted = min(count, wanted or max(LEAST_SAMPLED_ROWS, count // SHARE))
    if wanted == count or not (total := float(sizes.sum())) > 0:
        stands_for = torch.full((wanted,), count / wanted, dtype=torch.float64)
        return RowSample(torch.arange(wanted), stands_for)
    points = (torch.arange(wanted, dtype=torch.float64) + 0.5) * (total / wanted)
    drawn = torch.searchsorted(sizes.cumsum(0), points).clamp_(max=count - 1)
    rows, times = drawn.unique(return_counts=True)
    return RowSample(rows, times * (total / wanted) / sizes[rows])
