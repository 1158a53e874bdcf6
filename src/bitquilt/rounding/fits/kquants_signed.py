"""Fits of Q3_K and Q6_K: levels d · scale · code, scale and code signed.

For given codes the weighted error falls by 2 x a - x² b, where x = d · scale, a = Σ h w code and
b = Σ h code² (h importance): all choices of scales are made among such gains.

Letters: N super-blocks, J sub-blocks in each, k weights in a sub-block; M starts, P scales tried.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.qtypes.kquants import Signed
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import TINY
from bitquilt.rounding.fits.kquants import (
    finite_reciprocal,
    fit_super_blocks,
    furthest,
    half,
    pick_best,
)

SIGNED_STARTS = {
    "Q3_K": (
        *(-6.8, -5.6, -5.2, -4.8, -4.6, -4.4, -4.1, -3.8, -3.6, -3.4, -3.2, -3, -2.2),
        *(3.9, 4.2, 5.2),
    ),
    "Q6_K": (-32.4, -32, -31.6, -31, -30.6, -30, -29, -28, -27, -26, -25, -24, -23, -22, -21, -19),
}
"""Multiples of a scale that the largest weight of a sub-block, sign and all, starts at: those that
together lower the error most, found one after the other."""
TRIED_LARGEST_SCALES = {
    "Q3_K": tuple(m * f for m in (-32, 31) for f in (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.3)),
    "Q6_K": tuple(m * f for m in (-128, 127) for f in (0.8, 0.88, 0.94, 1.0)),
}
"""The largest scale of a super-block is put at these multiples of a tried d."""
SCALE_NEIGHBOURS = (-1, 0, 1)
"""Steps from the chosen scale to those that are tried."""
SIGNED_ROUNDS = 2
"""How often codes and scales are refitted in turn."""


@fit_family.register
def _signed(qtype: Signed, weight: Tensor, importance: Tensor) -> Unpacked:
    def fit(weights: Tensor, shares: Tensor) -> Unpacked:
        blocks = _Blocks(qtype, weights, shares)
        d, scales = _improve(blocks, *_search(blocks))
        return {"codes": blocks.codes(finite_reciprocal(d * scales)), "scales": scales, "d": d}

    return fit_super_blocks(qtype, weight, importance, fit)


class _Blocks:
    """Weights and importance [k, J, N] with what is worked out of them once."""

    def __init__(self, qtype: Signed, weights: Tensor, importance: Tensor) -> None:
        self.qtype = qtype
        self.weights = weights
        self.importance = importance
        self.weighted = weights * importance
        self._codes = torch.empty_like(weights)
        self._products = torch.empty_like(weights)

    def codes(self, inverses: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the nearest codes [k, J, N] for scales given by their inverses [J, N]."""
        codes = torch.mul(self.weights, inverses, out=out)
        return codes.round_().clamp_(self.qtype.low, self.qtype.high)

    def moments(self, inverses: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ h w code and Σ h code², [M, J, N], for the nearest codes at M sets of scales."""
        products, squares = torch.empty_like(inverses), torch.empty_like(inverses)
        for scale, product, square in zip(inverses, products, squares, strict=True):
            codes = self.codes(scale, self._codes)
            torch.sum(torch.mul(codes, self.weighted, out=self._products), 0, out=product)
            torch.sum(codes.square_().mul_(self.importance), 0, out=square)
        return products, squares

    def clamp(self, integers: Tensor) -> Tensor:
        return integers.clamp_(self.qtype.lowest_scale, self.qtype.highest_scale)


def _search(blocks: _Blocks) -> tuple[Tensor, Tensor]:
    """Find the best d [N] and integer scales [J, N] for any codes that the starts round to.

    A start puts the largest weight of a sub-block, sign and all, on a multiple of its scale. A
    tried d puts the largest of the best float scales on a multiple of d; under it every sub-block
    takes the codes that do best with the integer scale they would get.
    """
    name = blocks.qtype.name
    to_largest = finite_reciprocal(furthest(blocks.weights))
    starts = to_largest.new_tensor(SIGNED_STARTS[name]).view(-1, 1, 1)
    products, squares = blocks.moments(to_largest * starts)
    scales = products / squares.clamp_min(TINY)
    (_, best) = pick_best(products * scales, scales)
    tried = half(furthest(best) / best.new_tensor(TRIED_LARGEST_SCALES[name]).unsqueeze(1))
    doubled = 2 * products
    levels, gains = torch.empty_like(scales), torch.empty_like(scales)
    totals = torch.empty_like(tried)
    for d, total in zip(tried, totals, strict=True):
        blocks.clamp(torch.mul(scales, finite_reciprocal(d), out=levels).round_()).mul_(d)
        torch.mul(levels, squares, out=gains)
        torch.sub(doubled, gains, out=gains).mul_(levels)
        torch.sum(gains.amax(0), 0, out=total)
    (_, d) = pick_best(totals, tried)
    integers = blocks.clamp((scales * finite_reciprocal(d)).round_())
    (_, chosen) = pick_best(_gains(integers * d, products, squares), integers)
    return d, chosen


def _gains(levels: Tensor, products: Tensor, squares: Tensor) -> Tensor:
    return (2 * products - levels * squares).mul_(levels)


def _improve(blocks: _Blocks, d: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Alternate between integer scales, tried next to those they were, and the best d for them.

    Codes are the nearest throughout; the best of each super-block is kept, and so is a d
    beyond half precision, for the caller to refuse.
    """
    steps = scales.new_tensor(SCALE_NEIGHBOURS).view(-1, 1, 1)
    most, best_d, best_scales = torch.full_like(d, -torch.inf), d, scales
    for _ in range(SIGNED_ROUNDS):
        integers = blocks.clamp(scales + steps)
        levels = integers * d
        products, squares = blocks.moments(finite_reciprocal(levels))
        gains, scales, product, square = pick_best(
            _gains(levels, products, squares), integers, products, squares
        )
        gain = gains.sum(0)
        better = (gain > most) & best_d.isfinite()
        most = torch.where(better, gain, most)
        best_d = torch.where(better, d, best_d)
        best_scales = torch.where(better, scales, best_scales)
        d = half((scales * product).sum(0) / (scales.square() * square).sum(0).clamp_min(TINY))
    return best_d, best_scales
