"""How far moments of output gradients can be trusted: as far as every left-out fold gains by them.

Rows of a matrix make up for each other by B = E[g gᵀ] as its columns do by H, and other text may
have another B. As in :mod:`.shrinkage`, folds are left out one at a time. Rows are cut into chunks.
With B = Ṽ D Ṽᵀ, where D has one block per chunk and Ṽ is upper triangular with ones in these
blocks, chunks whose own roundings leave Z end with errors E = Ṽ⁻ᵀ Z
(:mod:`bitquilt.rounding.output_feedback`). If rows of Z err alike and independently, the KL that E
costs under the moments B' and H' of a left-out fold is expected to be

    ½ tr(B' E H' Eᵀ) = ½ tr(Ṽ⁻¹ B' Ṽ⁻ᵀ) · (what one row of Z costs under H'),

so the share for the outputs is chosen apart from that for the inputs. Without feedback, at share 1,
the trace is that of B'. The share is the one whose worst fold keeps least of it: text that nobody
calibrated on differs more from the folds than these differ among themselves.

Letters: R outputs of a matrix, M probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bitquilt.calibration.shrinkage import (
    FoldSum,
    Moments,
    factor_last_first,
    mean_of,
    probes_of,
    shrink_,
)

CHUNKS = 8
"""A matrix is cut into so many, if it has rows enough: sixteen gain little and take longer."""
LEAST_CHUNK = 32
"""Rows of the smallest chunk; a tile of rounding."""
TRIED_OUTPUT_SHARES = (0.8, 0.6, 0.45, 0.3, 0.15, 0.0)
"""What may be taken from the off-diagonals; 1 is no feedback between rows."""
USUAL_OUTPUT_SHARE = 0.3
"""What is taken where the text is too little to tell (docs/decisions/output-feedback.md)."""


def row_chunks(rows: int) -> list[slice]:
    """Return which rows each chunk has, in the order of rounding: whole tiles, but for the last."""
    tiles = max(1, rows // LEAST_CHUNK)
    count = min(CHUNKS, tiles)
    edges = [LEAST_CHUNK * (tiles * c // count) for c in range(count)]
    return [slice(*edge) for edge in pairwise([*edges, rows])]


def shrunk_outputs(moments: Moments) -> tuple[Tensor, float]:
    """Return B with its off-diagonals shrunk, [R, R], and by what share; the sums are gone then."""
    share = best_output_share(moments.folds())
    return shrink_(moments.take_mean(), share), share


def best_output_share(folds: Sequence[FoldSum]) -> float:
    """Return the share to take from off-diagonals: the one whose worst left-out fold is best.

    It goes from no feedback to more, for as long as the worst fold gains.

    Args:
        folds: sums over different text, those that have any.
    """
    if len(folds) < 2:
        return USUAL_OUTPUT_SHARE
    order = torch.stack([fold.diagonal() for fold in folds]).sum(0).argsort(descending=True)
    others = [
        mean_of(fold.ordered(order) for j, fold in enumerate(folds) if j != i)
        for i in range(len(folds))
    ]
    probes = [probes_of(fold.ordered(order)) for fold in folds]
    best, least = 1.0, 1.0
    for share in TRIED_OUTPUT_SHARES:
        worst = 0.0
        for other, own in zip(others, probes, strict=True):
            worst = max(worst, kept_error(other, share, own))
            if not worst < least:
                return best
        best, least = share, worst
    return best


def kept_error(moment: Tensor, share: float, probes: Tensor) -> float:
    """Return tr(Ṽ⁻¹ B' Ṽ⁻ᵀ) / tr(B'): what feedback under one B keeps of the error under another.

    Args:
        moment: B [R, R], in the order of rounding.
        share: what is taken from its off-diagonals first.
        probes: [R, M], whose outer products have B' as their mean.

    Returns:
        the part; infinity where B does not factorize, or nothing depends on the outputs.
    """
    lower = factor_last_first(moment, share)
    before = float(probes.square().sum())
    if lower is None or before == 0:
        return float("inf")
    # V is L turned round, and Ṽ⁻¹ p is each block of V times its part of V⁻¹ p
    made_up = torch.linalg.solve_triangular(lower, probes.flip(0), upper=False)
    after, rows = 0.0, len(lower)
    for chunk in row_chunks(rows):
        own = slice(rows - chunk.stop, rows - chunk.start)
        after += float((lower[own, own] @ made_up[own]).square().sum())
    return after / before
