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

from collections.abc import Sequence
from functools import cache

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
    """Second moments of one input, summed fold by fold, each token with its own weight."""

    def __init__(self, x: Tensor) -> None:
        """Begin with nothing, for inputs like those of a batch [T, C]."""
        columns = x.shape[1]
        self.sums = [x.new_zeros(columns, columns) for _ in range(FOLDS)]
        """Of weight · x xᵀ, [C, C] each."""
        self.weights = [0.0] * FOLDS

    def shrunk(self) -> tuple[Tensor, float]:
        """Return the mean of x xᵀ with its off-diagonals shrunk, [C, C], and by what share."""
        share = best_share(
            [total / own for total, own in zip(self.sums, self.weights, strict=True) if own > 0]
        )
        total = torch.stack(self.sums).sum(0) if len(self.sums) > 1 else self.sums[0]
        return shrink(total / max(sum(self.weights), torch.finfo(total.dtype).tiny), share), share


def shrink(hessian: Tensor, share: float) -> Tensor:
    """Take a share from the off-diagonals of [C, C]."""
    shrunk = hessian * (1 - share)
    shrunk.diagonal().copy_(hessian.diagonal())
    return shrunk


def best_share(folds: Sequence[Tensor]) -> float:
    """Return the share to take from off-diagonals: that of least error on left-out folds.

    The error first falls with the share and then rises, so a walk downhill finds the least.

    Args:
        folds: Hessians [C, C] of different text, those that have any.
    """
    if len(folds) < 2:
        return USUAL_SHARE
    order = torch.stack(list(folds)).sum(0).diagonal().argsort(descending=True)
    ordered = [fold[order][:, order] for fold in folds]
    left_out = range(len(folds) if len(order) <= WIDE_INPUT else 1)
    probes = {i: _probes(ordered[i]) for i in left_out}
    others = {
        i: torch.stack([fold for j, fold in enumerate(ordered) if j != i]).mean(0) for i in left_out
    }

    @cache
    def error(tried: int) -> float:
        if not 0 <= tried < len(TRIED_SHARES):
            return float("inf")
        share = TRIED_SHARES[tried]
        return sum(feedback_error(shrink(others[i], share), probes[i]) for i in left_out)

    at = len(TRIED_SHARES) // 2 - 1
    step = -1 if error(at - 1) < error(at) else 1
    while error(at + step) < error(at):
        at += step
    return TRIED_SHARES[at] if error(at) < float("inf") else USUAL_SHARE


def feedback_error(hessian: Tensor, probes: Tensor) -> float:
    """Return tr(Ũ⁻¹ A Ũ⁻ᵀ), what feedback under one Hessian costs under another.

    Args:
        hessian: H [C, C], in the order of rounding.
        probes: [C, M], whose outer products have A as their mean.

    Returns:
        the error; infinity where H does not factorize.
    """
    turned = hessian.flip(0, 1)
    turned.diagonal().add_(DAMPING * turned.diagonal().mean())
    lower, info = torch.linalg.cholesky_ex(turned)
    if info:
        return float("inf")
    upper = lower.flip(0, 1)
    made_up = torch.linalg.solve_triangular(upper / upper.diagonal(), probes, upper=True)
    return float(made_up.square().sum() / probes.shape[1])


def _probes(hessian: Tensor) -> Tensor:
    """Return [C, M] whose outer products have A / tr(A) as their mean: all texts count alike."""
    own = hessian / hessian.diagonal().sum().clamp_min(torch.finfo(hessian.dtype).tiny)
    own.diagonal().add_(JITTER * own.diagonal().mean())
    lower, _ = torch.linalg.cholesky_ex(own)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(own), PROBES), generator=generator).to(own) * 2 - 1
    probes: Tensor = lower @ signs
    return probes
