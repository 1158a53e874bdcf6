"""One input's second moment, ordered, damped and factorized; every matrix that reads it shares it.

A rounding error E [R, C] costs E H Eᵀ per row. With H = U Uᵀ, U upper triangular, that is the sum
over columns of (E U)²: column j sees only the errors made before it, which is what lets it make up
for them (LDLQ, Chee et al. 2023; the same as GPTQ, Frantar et al. 2022).

Letters: C inputs, G = C / 8 groups of neighbouring columns, which i-quants round as one vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

GROUP = 8
BLOCK = 128
"""Columns between two large products: what lies between is done in small steps."""
DAMPING = 0.03
"""Of the mean diagonal, added to it: the text is a sample (docs/decisions/feedback.md)."""
MORE = 10.0
"""What damping is multiplied with where a Hessian does not factorize."""


@dataclass(frozen=True)
class Factor:
    """All tensors are float32 and in the order of rounding: important groups first."""

    groups: Tensor
    """int64 [G]: the i-th to be rounded is group ``groups[i]`` of the matrix."""
    hessian: Tensor
    """Damped, [C, C]."""
    upper: Tensor
    """U, [C, C]."""
    carry: Tensor
    """U with each group of columns times its triangle's inverse, [C, C]: row i, column j is what an
    error in column i adds to the target of column j of a later group."""
    triangles: Tensor
    """[G, 8, 8]: the diagonal blocks of U, the metric in which a group is rounded."""

    @property
    def importance(self) -> Tensor:
        """What an error in each column counts for when scales are fitted for feedback, [C].

        Between what it costs if no other column makes up for it (the diagonal of H) and if all
        later ones do (that of U, squared): the geometric mean (docs/decisions/feedback.md).
        """
        made_up = self.upper.diagonal().square()
        return self.restored((self.hessian.diagonal() * made_up).sqrt())

    @cached_property
    def natural(self) -> Tensor:
        """The damped Hessian in the matrix's own order of columns."""
        return self.restored(self.restored(self.hessian).T)

    def ordered(self, columns: Tensor) -> Tensor:
        """Columns [C, …] of a matrix in the order of rounding."""
        return _take(columns, self.groups)

    def restored(self, columns: Tensor) -> Tensor:
        """The inverse of :meth:`ordered`."""
        return _take(columns, self.groups.argsort())

    def cost(self, errors: Tensor) -> Tensor:
        """E H Eᵀ of each row [N] of errors [C, N], transposed and in this order."""
        total = errors.new_zeros(errors.shape[1])
        for start in range(0, len(errors), BLOCK):
            stop = start + BLOCK
            total += column_sums((self.upper[:stop, start:stop].T @ errors[:stop]).square_())
        return total


def factorize(hessian: Tensor, name: str, say: Callable[[str], None]) -> Factor:
    """Order, damp and factorize a second moment [C, C].

    Where it is not positive definite with ``DAMPING`` it gets ten times as much until it is, which
    is said once, by name. Inputs that are always zero keep their weights near what they were:
    damping is all that an error there costs.

    Args:
        hessian: mean of x xᵀ.
        name: whose input it is.
        say: told what was done to a Hessian that did not factorize.
    """
    importance = torch.unflatten(hessian.diagonal(), 0, (-1, GROUP)).sum(1)
    groups = importance.argsort(descending=True, stable=True)
    ordered = _take(_take(hessian.double(), groups).T, groups)
    mean = ordered.diagonal().mean()
    if not mean > torch.finfo(torch.float32).tiny:  # an input that the text never reached
        mean = torch.ones_like(mean)
    damping, failed = DAMPING, True
    while failed:
        damped = ordered + damping * mean * torch.eye(len(ordered), device=ordered.device)
        # H = U Uᵀ from the last column on: the lower factor of H turned round, turned round
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        failed = bool(info != 0)
        damping *= MORE if failed else 1.0
    if damping > DAMPING:
        say(f"the Hessian of {name} does not factorize; damped by {damping:g} of its mean diagonal")
    upper = lower.flip(0, 1)
    triangles = diagonal_blocks(upper)
    # U_ig T_g⁻¹ for every group g: [C, C] -> [G, C, 8] and back
    by_group = torch.unflatten(upper, 1, (-1, GROUP)).transpose(0, 1)
    carry = torch.linalg.solve_triangular(triangles, by_group, upper=True, left=False)
    parts = (damped, upper, carry.transpose(0, 1).flatten(1), triangles)
    return Factor(groups, *(part.float() for part in parts))


def column_sums(matrix: Tensor) -> Tensor:
    """Σ over the rows of [n, N]: [N].

    torch's own sum adds in an order that depends on where a column stands, so that what is rounded
    together would change the last bits. Here it is always halves upon halves.
    """
    while len(matrix) > 1:
        half = len(matrix) // 2
        odd = matrix[2 * half :]
        matrix = torch.cat([matrix[:half] + matrix[half : 2 * half], odd])
    return matrix[0]


def diagonal_blocks(matrix: Tensor) -> Tensor:
    """[C, C] -> [G, 8, 8]."""
    # [C, C] -> [G, 8, G, 8], of which the pairs of equal groups go first
    pairs = torch.unflatten(torch.unflatten(matrix, 1, (-1, GROUP)), 0, (-1, GROUP))
    return torch.diagonal(pairs, dim1=0, dim2=2).permute(2, 0, 1)


def _take(columns: Tensor, groups: Tensor) -> Tensor:
    """Groups of eight columns in another order; neighbours stay neighbours."""
    # [C, …] -> [G, 8, …] and back
    return torch.unflatten(columns, 0, (-1, GROUP))[groups].flatten(0, 1)
