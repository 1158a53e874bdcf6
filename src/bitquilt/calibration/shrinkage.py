"""How far a Hessian can be trusted: its off-diagonals are shrunk as other text says.

Error feedback learns the text that its Hessian was summed over. What it is worth elsewhere is seen
by leaving out: the domains of the calibration text are dealt into folds, the Hessian of the other
folds is factorized, and what feedback under it costs under the left-out fold's Hessian is known
without rounding anything. With H = Ũ D Ũᵀ, Ũ upper triangular with ones on its diagonal, rounding
errors z of equal variance in every column end as errors e = z Ũ⁻¹, whose expected cost under
another Hessian A is their variance times tr(Ũ⁻¹ A Ũ⁻ᵀ).

Letters: C columns, F folds, M probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

FOLDS = 3
"""Folds that the calibration text is dealt into, domain by domain."""
DAMPING = 0.03
"""This part of the mean diagonal is added to it: the text is a sample (docs/decisions/gptq.md)."""
TRIED_SHARES = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6)
"""What may be taken from the off-diagonals; the search begins in the middle."""
USUAL_SHARE = 0.15
"""What is taken where the text is too little to tell."""
WIDE_INPUT = 1024
"""Columns above which one fold alone is left out: a factorization takes C³ / 3 products."""
PROBES = 64
"""M: the trace is that of random signs."""
JITTER = 1e-4
"""This part of the mean diagonal makes the left-out fold's Hessian positive definite."""


class Moments:
    """Second moments of one input or output, summed fold by fold, tokens with their weights."""

    def __init__(self, x: Tensor) -> None:
        """Begin with nothing, for inputs like those of a batch [T, C]."""
        columns = x.shape[1]
        self.sums = [x.new_zeros(columns, columns) for _ in range(FOLDS)]
        """Of weight · x xᵀ, [C, C] each."""
        self.weights = [0.0] * FOLDS

    def join(self, other: Moments) -> None:
        """Add what was summed over other text, maybe on another device."""
        for fold, total in enumerate(other.sums):
            self.sums[fold] += total.to(self.sums[fold].device)
            self.weights[fold] += other.weights[fold]

    def folds(self) -> list[FoldSum]:
        """Return the sums of those folds that have any text."""
        weights = zip(self.sums, self.weights, strict=True)
        return [FoldSum(total, own) for total, own in weights if own > 0]

    def take_mean(self) -> Tensor:
        """Return the mean of x xᵀ over all folds, [C, C].

        The sums are gone then: of a wide input each takes gigabytes.
        """
        total = self.sums.pop(0)
        while self.sums:
            total += self.sums.pop(0)
        total /= max(sum(self.weights), torch.finfo(total.dtype).tiny)
        return total

    def shrunk(self) -> tuple[Tensor, float]:
        """Return the mean with its off-diagonals shrunk, [C, C], and by what share."""
        share = best_share(self.folds())
        return shrink_(self.take_mean(), share), share


class FoldSum(NamedTuple):
    """What was summed over one fold."""

    total: Tensor
    """Of weight · x xᵀ, [C, C]."""
    weight: float
    """Of all its tokens."""

    def diagonal(self) -> Tensor:
        """Return the diagonal of the mean, [C]."""
        return self.total.diagonal() / self.weight

    def ordered(self, order: Tensor) -> Tensor:
        """Return the mean with its columns in another order, int64 [C]."""
        return self.total[order][:, order].div_(self.weight)


def shrink_(hessian: Tensor, share: float) -> Tensor:
    """Take a share from the off-diagonals of [C, C], in place."""
    diagonal = hessian.diagonal().clone()
    hessian *= 1 - share
    hessian.diagonal().copy_(diagonal)
    return hessian


def best_share(folds: Sequence[FoldSum]) -> float:
    """Return the share to take from off-diagonals: that of least error on left-out folds.

    The error first falls with the share and then rises, so a walk downhill finds the least.

    Args:
        folds: sums over different text, those that have any.
    """
    if len(folds) < 2:
        return USUAL_SHARE
    order = torch.stack([fold.diagonal() for fold in folds]).sum(0).argsort(descending=True)
    left_out = range(len(folds) if len(order) <= WIDE_INPUT else 1)
    probes = {i: probes_of(folds[i].ordered(order)) for i in left_out}
    others = {
        i: mean_of(fold.ordered(order) for j, fold in enumerate(folds) if j != i) for i in left_out
    }

    @cache
    def error(tried: int) -> float:
        if not 0 <= tried < len(TRIED_SHARES):
            return float("inf")
        share = TRIED_SHARES[tried]
        return sum(feedback_error(others[i], share, probes[i]) for i in left_out)

    at = len(TRIED_SHARES) // 2 - 1
    step = -1 if error(at - 1) < error(at) else 1
    while error(at + step) < error(at):
        at += step
    return TRIED_SHARES[at] if error(at) < float("inf") else USUAL_SHARE


def mean_of(matrices: Iterator[Tensor]) -> Tensor:
    """Return the mean of some matrices, of which two are in memory at a time."""
    total, count = next(matrices), 1
    for matrix in matrices:
        total += matrix
        count += 1
    return total.div_(count)


def feedback_error(hessian: Tensor, share: float, probes: Tensor) -> float:
    """Return tr(Ũ⁻¹ A Ũ⁻ᵀ), what feedback under one Hessian costs under another.

    Args:
        hessian: H [C, C], in the order of rounding.
        share: what is taken from its off-diagonals first.
        probes: [C, M], whose outer products have A as their mean.

    Returns:
        the error; infinity where H does not factorize.
    """
    lower = factor_last_first(hessian, share)
    if lower is None:
        return float("inf")
    # U is L turned round and Ũ is U less the scale of its columns: Ũ⁻¹ p from L⁻¹ of p turned round
    made_up = torch.linalg.solve_triangular(lower, probes.flip(0), upper=False)
    made_up *= lower.diagonal().unsqueeze(1)
    return float(made_up.square().sum() / probes.shape[1])


def factor_last_first(hessian: Tensor, share: float) -> Tensor | None:
    """Factorize [C, C], shrunk by a share and damped, from its last column to its first.

    Returns:
        the lower triangle L [C, C] of the matrix turned round; None where it does not factorize.
    """
    turned = shrink_(hessian.flip(0, 1), share)
    turned.diagonal().add_(DAMPING * turned.diagonal().mean())
    lower, info = torch.linalg.cholesky_ex(turned)
    return None if info else lower


def probes_of(own: Tensor) -> Tensor:
    """Return [C, M] whose outer products have A / tr(A) as their mean: all texts count alike.

    A [C, C] is overwritten.
    """
    own /= own.diagonal().sum().clamp_min(torch.finfo(own.dtype).tiny)
    own.diagonal().add_(JITTER * own.diagonal().mean())
    lower, _ = torch.linalg.cholesky_ex(own)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(own), PROBES), generator=generator).to(own) * 2 - 1
    probes: Tensor = lower @ signs
    return probes
