"""Fits of Q2_K, Q4_K and Q5_K: levels d · scale · code - dmin · min, scale and min unsigned.

For given codes the weighted error falls by x (2 c - x v) - H (y + μ - x q)² below the variance of
the weights about their mean μ, where x = d · scale, y = dmin · min, q, c and v are the mean of the
codes, their covariance with the weights and their variance, all weighted with importance h, and H
is its sum. Nothing cancels, however far from zero a sub-block lies.

dmin may be negative: then it serves super-blocks above zero, which ggml's own fit cannot follow.

Letters: N super-blocks, J sub-blocks in each, k weights in a sub-block; M lines tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.qtypes.kquants import WithMins
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.kquants import finite_reciprocal, fit_super_blocks, half, pick_best

LEAST_RELATIVE_VARIANCE = 1e-5
"""A line is fitted through codes of at least this variance, as a part of their mean square: a
smaller one is rounding noise."""
RANGE_STARTS = {
    "Q2_K": (
        (-0.4, 3.4), (0, 3.6), (-0.6, 3), (0.8, 3.2), (0, 3.2), (-0.4, 3.2),
        (-0.2, 4.2), (-1, 3), (-0.4, 3.8), (-1, 3.6), (0, 2.8), (0.2, 3.4),
    ),
    "Q4_K": (
        (0, 15), (0, 14), (-0.5, 15), (0, 15.5), (1, 14), (3, 15), (-0.5, 15.5), (0.5, 15),
        (1, 15.5), (5, 15), (-1, 15), (2, 13), (0, 16), (-0.5, 14.5), (-1, 15.5), (-0.5, 13),
        (-0.5, 16), (0, 13.5), (4, 13), (0.5, 13), (2, 14.5), (0.5, 15.5), (-1.5, 15), (0, 17),
    ),
    "Q5_K": (
        (0, 30), (0, 31), (2, 31), (2, 30), (0, 31.5), (-0.5, 31), (4, 31), (1, 27), (1, 31.5),
        (-0.5, 30), (3, 28), (-0.5, 31.5), (9, 31), (-0.5, 29), (8, 29), (1, 30.5), (6, 30),
        (0, 32), (-0.5, 28), (8, 31), (-0.5, 30.5), (2, 30.5), (9, 27), (-1, 31), (9, 26),
        (4, 31.5), (0.5, 31), (4, 24.5),
    ),
}  # fmt: skip
"""Numbers on the scale of codes, or beyond it, that the least and the largest weight of a sub-block
start at: those that together lower the error most, found one after the other."""
THROUGH_ZERO = (1.0, 0.96, 0.9, 0.8)
"""Parts of the range of codes that lines through zero start with, for weights off to one side."""
D_SHARES = (0.75, 0.85, 0.9, 0.95, 1.0, 1.05, 1.15)
DMIN_SHARES = (0.85, 0.92, 1.0, 1.05)
"""A tried d puts the largest scale, and a tried dmin the furthest min, at this share of the largest
integer."""
D_KEPT = 2
"""So many d are tried with every dmin, and one more for mins of one sign."""
SCALE_MIN_NEIGHBOURS = tuple((scale, least) for scale in (0, -1, 1) for least in (0, -1, 1))
"""Steps from the chosen scale and min to the pairs that are tried."""
MINS_ROUNDS = 2
"""How often codes and scales are refitted in turn."""


@fit_family.register
def _with_mins(qtype: WithMins, weight: Tensor, importance: Tensor) -> Unpacked:
    def fit(weights: Tensor, shares: Tensor) -> Unpacked:
        blocks = _Blocks(qtype, weights, shares)
        best = _improve(blocks, *_search(blocks))
        return {"codes": blocks.codes(*best.line()), **vars(best)}

    return fit_super_blocks(qtype, weight, importance, fit)


@dataclass(frozen=True)
class _Moments:
    """Moments of M sets of codes, float32 [M, J, N]: all that the error of a line depends on."""

    mean: Tensor
    covariance: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Scales:
    """What a file holds but for the codes: d and dmin [N], integer scales and mins [J, N]."""

    d: Tensor
    dmin: Tensor
    scales: Tensor
    mins: Tensor

    def line(self) -> tuple[Tensor, Tensor]:
        """Return the factor and the addend, [J, N] each, that turn a weight into its code."""
        factor = finite_reciprocal(self.d * self.scales)
        return factor, self.dmin * self.mins * factor


class _Blocks:
    """Weights and importance [k, J, N] with what is worked out of them once."""

    def __init__(self, qtype: WithMins, weights: Tensor, importance: Tensor) -> None:
        self.qtype = qtype
        self.weights = weights
        self.importance = importance
        self.total = importance.sum(0)
        # in range to the last digit, so that nothing is left of a constant sub-block
        mean = (weights * importance).sum(0) / self.total
        self.mean = mean.clamp(weights.amin(0), weights.amax(0))
        self.deviations = (weights - self.mean).mul_(importance)
        self.left = self.deviations.sum(0)
        self._codes, self._products = torch.empty_like(weights), torch.empty_like(weights)

    def codes(self, factor: Tensor, addend: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the nearest codes [k, J, N] on lines [J, N]."""
        codes = torch.addcmul(addend, self.weights, factor, out=out)
        return codes.round_().clamp_(0, self.qtype.high)

    def moments(self, factors: Tensor, addends: Tensor) -> _Moments:
        """Return the moments of the nearest codes on each of M sets of lines [M, J, N]."""
        sums, covariances, squares = torch.empty(3, *factors.shape, device=factors.device)
        product = self._products
        for i in range(len(factors)):
            codes = self.codes(factors[i], addends[i], self._codes)
            torch.sum(torch.mul(codes, self.deviations, out=product), 0, out=covariances[i])
            torch.sum(torch.mul(codes, self.importance, out=product), 0, out=sums[i])
            torch.sum(product.mul_(codes), 0, out=squares[i])
        means = sums / self.total
        covariances.addcmul_(means, self.left, value=-1)
        vanishing = squares.clamp_min(1.0) * LEAST_RELATIVE_VARIANCE
        return _Moments(means, covariances, torch.maximum(squares - sums * means, vanishing))

    def whole(self, numbers: Tensor, unit: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the storable integers nearest to numbers [M, J, N] over units [N]."""
        return self.clamp(torch.mul(numbers, finite_reciprocal(unit), out=out).round_())

    def clamp(self, integers: Tensor) -> Tensor:
        return integers.clamp_(0, self.qtype.highest_scale)


def _search(blocks: _Blocks) -> tuple[_Moments, Tensor, Tensor]:
    """Find moments of the starting codes, and the d and dmin [N] that serve some of them best."""
    of = blocks.moments(*_starts(blocks))
    slopes = of.covariance / of.variance
    _, slope, mean = pick_best(slopes * of.covariance, slopes, of.mean)
    highest = blocks.qtype.highest_scale
    ds = _best_ds(blocks, of, slopes, half(slope.amax(0) / (_column(D_SHARES, slope) * highest)))
    offsets = slope * mean - blocks.mean
    reach = torch.stack([offsets.amax(0), offsets.amin(0)]).repeat_interleave(len(DMIN_SHARES), 0)
    dmins = half(reach / (_column(DMIN_SHARES * 2, slope) * highest))
    pairs = [_best_dmin(blocks, of, slopes, d, dmins) for d in ds]
    gains, dmins = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    _, d, dmin = pick_best(gains, ds, dmins)
    return of, d, dmin


def _starts(blocks: _Blocks) -> tuple[Tensor, Tensor]:
    """Factors and addends [M, J, N] of the lines to start from, the last of them through zero."""
    low, high = blocks.weights.amin(0), blocks.weights.amax(0)
    reaches = low.new_tensor(RANGE_STARTS[blocks.qtype.name]).view(-1, 2, 1, 1)
    factors = (reaches[:, 1] - reaches[:, 0]) * finite_reciprocal(high - low)
    addends = torch.addcmul(reaches[:, 0], low, factors, value=-1)
    tops = blocks.qtype.high * low.new_tensor(THROUGH_ZERO).view(-1, 1, 1)
    through = tops * finite_reciprocal(high.clamp_min(0) - low.clamp_max(0))
    return (
        torch.cat([factors, through]),
        torch.cat([addends, -low.clamp_max(0) * through]),
    )


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(numbers).unsqueeze(1)


def _best_ds(blocks: _Blocks, of: _Moments, slopes: Tensor, ds: Tensor) -> Tensor:
    """Find the few d of [P, N] that suit the sub-blocks best if mins are not rounded.

    The last is the best where none may lie above zero: one sub-block that would otherwise has a
    lesser slope, and with that d be clipped beside others whose mins need the other sign.
    """
    free, below = torch.empty(2, *ds.shape, device=ds.device)
    levels, gains, miss = (torch.empty_like(slopes) for _ in range(3))
    for d, total, without in zip(ds, free, below, strict=True):
        blocks.whole(slopes, d, levels).mul_(d)
        torch.mul(levels, of.variance, out=gains)
        torch.sub(of.covariance, gains, alpha=0.5, out=gains).mul_(levels)
        torch.sum(gains.amax(0), 0, out=total)
        torch.addcmul(-blocks.mean, levels, of.mean, out=miss).clamp_max_(0).square_()
        gains.sub_(miss.mul_(blocks.total), alpha=0.5)
        torch.sum(gains.amax(0), 0, out=without)
    best = [
        totals.nan_to_num(nan=-torch.inf).topk(count, 0).indices
        for totals, count in ((free, D_KEPT), (below, 1))
    ]
    return ds.gather(0, torch.cat(best))


def _best_dmin(
    blocks: _Blocks, of: _Moments, slopes: Tensor, d: Tensor, dmins: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gain with the best dmin of [P, N] under d, and that dmin, both [N]."""
    x = blocks.whole(slopes, d).mul_(d)
    wanted = torch.addcmul(-blocks.mean, x, of.mean)
    free = (2 * of.covariance).sub_(x * of.variance).mul_(x)
    totals, miss = torch.empty_like(dmins), x
    for dmin, total in zip(dmins, totals, strict=True):
        blocks.whole(wanted, dmin, miss).mul_(dmin)
        miss.sub_(wanted).square_().mul_(blocks.total)
        torch.sum(torch.sub(free, miss, out=miss).amax(0), 0, out=total)
    best, dmin = pick_best(totals, dmins)
    return best, dmin


def _lines(blocks: _Blocks, of: _Moments, d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gain, scale and min of each set of codes, [M, J, N].

    First the scale that fits best with any min, then the min for it, then the scale for that min.
    """
    scales = blocks.whole(of.covariance / of.variance, d)
    wanted = torch.addcmul(-blocks.mean, scales * d, of.mean)
    mins = blocks.whole(wanted, dmin)
    weighed = of.mean * blocks.total
    through = torch.addcmul(of.covariance, weighed, mins * dmin + blocks.mean)
    scales = blocks.whole(through / torch.addcmul(of.variance, weighed, of.mean), d)
    x = scales * d
    miss = (mins * dmin + blocks.mean).sub_(x * of.mean).square_().mul_(blocks.total)
    gains = (2 * of.covariance).sub_(x * of.variance).mul_(x).sub_(miss)
    return gains, scales, mins


def _improve(blocks: _Blocks, of: _Moments, d: Tensor, dmin: Tensor) -> _Scales:
    """Alternate between the best codes, scales and mins of those tried, and d and dmin for them.

    New codes are the nearest on the lines around those chosen. The best of each super-block is
    kept.
    """
    scales, mins, gain, chosen = _choose(blocks, of, d, dmin)
    most, best = gain, _Scales(d, dmin, scales, mins)
    steps = d.new_tensor(SCALE_MIN_NEIGHBOURS).view(-1, 2, 1, 1)
    for _ in range(MINS_ROUNDS):
        new_d, new_dmin = _refit(blocks, chosen, scales, mins)
        d, dmin = _if_near(new_d, d), _if_near(new_dmin, dmin)
        around = blocks.clamp(scales + steps[:, 0]), blocks.clamp(mins + steps[:, 1])
        of = blocks.moments(*_Scales(d, dmin, *around).line())
        scales, mins, gain, chosen = _choose(blocks, of, d, dmin)
        best = _where(gain > most, _Scales(d, dmin, scales, mins), best)
        most = torch.maximum(most, gain)
    return best


def _choose(
    blocks: _Blocks, of: _Moments, d: Tensor, dmin: Tensor
) -> tuple[Tensor, Tensor, Tensor, _Moments]:
    """Choose the best of M sets of codes for each sub-block: its scale, min and moments [J, N].

    Third comes the gain of the whole super-block, [N].
    """
    tables = (*_lines(blocks, of, d, dmin), of.mean, of.covariance, of.variance)
    gains, scales, mins, *moments = pick_best(*tables)
    return scales, mins, gains.sum(0), _Moments(*moments)


def _if_near(new: Tensor, old: Tensor) -> Tensor:
    """Take new numbers, or the old where the new are far off, as the equations were singular."""
    return torch.where((new - old).abs() < old.abs() / 2, new, old)


def _where(better: Tensor, one: _Scales, other: _Scales) -> _Scales:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return _Scales(*(torch.where(better, a, b) for a, b in pairs))


def _refit(blocks: _Blocks, of: _Moments, scales: Tensor, mins: Tensor) -> tuple[Tensor, Tensor]:
    """Solve two normal equations for the d and dmin [N] that suit codes and integers best."""
    spread = blocks.total * mins
    weighed = blocks.total * of.mean * scales
    dd = (scales.square() * of.variance + weighed * of.mean * scales).sum(0)
    dm = -(weighed * mins).sum(0)
    mm = (spread * mins).sum(0)
    right_d = (scales * of.covariance + weighed * blocks.mean).sum(0)
    right_m = -(spread * blocks.mean).sum(0)
    ratio = dm * finite_reciprocal(mm)
    d = half((right_d - ratio * right_m) * finite_reciprocal(dd - ratio * dm))
    return d, half((right_m - dm * d) * finite_reciprocal(mm))
