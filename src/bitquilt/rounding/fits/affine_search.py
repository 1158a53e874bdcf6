"""Search for the scale and offset of each group: levels scale · code + offset, codes 0 … top.

Letters: R rows, N groups along a row, k weights in a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from bitquilt.rounding.fits.groups import TINY, Storage, dot, inverse, power_of_two

LEAST_VARIANCE = 1e-6
"""A line is fitted through codes of at least this variance, in squared codes."""


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Groups of weights to fit lines to, and how the lines are stored.

    weights: float32 [R, N, k], moved and scaled so that they lie about -1 … 1.
    importance: [R, N, k].
    top: the largest code.
    scale, offset: storage of either number, in the same measure as the weights.
    """

    weights: Tensor
    importance: Tensor
    top: int
    scale: Storage
    offset: Storage


@dataclass(frozen=True)
class Line:
    """Scales and offsets [R, N, 1], and the weighted squared error on their nearest codes."""

    scale: Tensor
    offset: Tensor
    error: Tensor


def lines(groups: Tensor, importance: Tensor, top: int, dtype: torch.dtype) -> Lines:
    """Centre and scale groups [R, N, k]; halves are taken first so that nothing overflows."""
    low, high = groups.amin(-1, keepdim=True) / 2, groups.amax(-1, keepdim=True) / 2
    centre, reach = low + high, high - low
    # The offset of a narrow group far from zero is off by more than the group's width.
    unit = power_of_two(reach + torch.finfo(dtype).eps * centre.abs())
    return Lines(
        weights=(groups - centre) / unit,
        importance=importance,
        top=top,
        scale=Storage(dtype, unit),
        offset=Storage(dtype, unit, centre),
    )


def codes(of: Lines, scale: Tensor, offset: Tensor) -> Tensor:
    """Return the nearest codes, float32 [R, N, k]."""
    return (of.weights - offset).mul_(inverse(scale)).round_().clamp_(0, of.top)


def search_range(of: Lines, parts: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Find the best line of those that fit what clipped ranges round to.

    A line fitted to given codes c takes cov(w, c)² / var(c) off the error, moments weighted with
    importance, so the largest of these wins.

    Args:
        of: the groups.
        parts: of half a group's range, by which either end is drawn in, each with each.

    Returns:
        Scales and offsets [R, N, 1], not yet as they are stored.
    """
    total = of.importance.sum(-1)
    weighted = of.weights * of.importance
    mean = weighted.sum(-1) / total
    low, high = of.weights.amin(-1, keepdim=True), of.weights.amax(-1, keepdim=True)
    inward = list(product(parts, parts))
    sums, products, squares = of.weights.new_empty(3, len(inward), *mean.shape)
    for i, (below, above) in enumerate(inward):
        # The groups are centred: high is half the range.
        bottom = low + below * high
        factor = inverse(high - above * high - bottom) * of.top
        code = (of.weights - bottom).mul_(factor).round_().clamp_(0, of.top)
        torch.linalg.vecdot(code, of.importance, out=sums[i])
        torch.linalg.vecdot(code, weighted, out=products[i])
        torch.linalg.vecdot(code.square_(), of.importance, out=squares[i])
    centres = sums / total
    covariances = products - sums * mean
    slopes = covariances / (squares - sums * centres).clamp_min_(LEAST_VARIANCE)
    best = (slopes * covariances).argmax(0, keepdim=True)
    slope, centre = slopes.gather(0, best)[0], centres.gather(0, best)[0]
    return slope.unsqueeze(-1), (mean - slope * centre).unsqueeze(-1)


def walk(
    weights: Tensor, importance: Tensor, top: int, turns: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Walk to a line as ggml does: fit a scale at each turn, and move the lower end at each gain.

    A start that no other search dominates: it follows its own importance, and the offset may not
    lie above zero. Source: ggml-quants.c, make_qkx3_quants.

    Args:
        weights: float32 [R, N, k], as far from zero as they are.
        importance: what the walk weighs errors with, [R, N, k].
        top: the largest code.
        turns: how far beyond the top code, in order, the scale spreads the range.

    Returns:
        Scales and offsets [R, N, 1], not yet as they are stored.
    """
    high = weights.amax(-1, keepdim=True)
    total, first = importance.sum(-1, keepdim=True), dot(weights, importance)
    offset = weights.amin(-1, keepdim=True).clamp_max_(0)
    scale = (high - offset) / top
    code = (weights - offset).mul_(inverse(scale)).round_().clamp_(0, top)
    least = _error(weights, importance, code, scale, offset)
    for turn in turns:
        code = (weights - offset).mul_((top + turn) * inverse(high - offset))
        code.round_().clamp_(0, top)
        weighted = code * importance
        one, two = weighted.sum(-1, keepdim=True), dot(weighted, code).clamp_min_(TINY)
        cross = dot(weighted, weights)
        slope = (total * cross - first * one) / (total * two - one * one).clamp_min_(TINY)
        start = (first - slope * one) / total
        slope = torch.where(start > 0, cross / two, slope)
        start.clamp_max_(0)
        error = _error(weights, importance, code, slope, start)
        gains = error < least
        least = torch.where(gains, error, least)
        scale, offset = torch.where(gains, slope, scale), torch.where(gains, start, offset)
    return scale, offset


def _error(
    weights: Tensor, importance: Tensor, code: Tensor, scale: Tensor, offset: Tensor
) -> Tensor:
    """Weighted squared error of given codes, [R, N, 1]; overwrites the codes."""
    residual = code.mul_(scale).add_(offset).sub_(weights)
    return dot(residual.square_(), importance)


def alternate(of: Lines, scale: Tensor, offset: Tensor, best: Line, rounds: int) -> Line:
    """Alternate between nearest codes and the best line for them; return the best seen.

    Args:
        of: the groups.
        scale: where to start, [R, N, 1].
        offset: where to start, [R, N, 1].
        best: the best line so far.
        rounds: how often.
    """
    for _ in range(rounds):
        scale, offset = of.scale.nearest(scale), of.offset.nearest(offset)
        code = codes(of, scale, offset)
        residual = (of.weights - offset).sub_(code * scale)
        weighted = residual * of.importance
        best = better(best, Line(scale, offset, dot(weighted, residual)))
        scale, offset = _refit(of, scale, offset, code, weighted)
    return better(best, measure(of, scale, offset))


def _refit(
    of: Lines, scale: Tensor, offset: Tensor, code: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Fit the line of least error to given codes: the offset, then the scale for it as stored.

    ``residual`` is importance · (weight - level), [R, N, k].
    """
    total = of.importance.sum(-1, keepdim=True)
    cross, mean = dot(residual, code), residual.sum(-1, keepdim=True) / total
    weighted = code * of.importance
    centre, square = weighted.sum(-1, keepdim=True) / total, dot(weighted, code)
    variance = (square - total * centre.square()).clamp_min_(LEAST_VARIANCE)
    slope = (cross - total * mean * centre) / variance
    shifted = of.offset.nearest(offset + mean - slope * centre)
    step = (cross - (shifted - offset) * total * centre) / square.clamp_min_(LEAST_VARIANCE)
    return scale + step, shifted


def measure(of: Lines, scale: Tensor, offset: Tensor) -> Line:
    """Return the line as it is stored, with its error."""
    scale, offset = of.scale.nearest(scale), of.offset.nearest(offset)
    residual = (of.weights - offset).sub_(codes(of, scale, offset).mul_(scale))
    return Line(scale, offset, dot(residual.square_(), of.importance))


def better(one: Line, other: Line) -> Line:
    """Choose for each group the line of less error; an error that is not a number loses."""
    other_wins = other.error < one.error
    return Line(
        torch.where(other_wins, other.scale, one.scale),
        torch.where(other_wins, other.offset, one.offset),
        torch.where(other_wins, other.error, one.error),
    )


def from_below(of: Lines) -> Line:
    """Draw the line from the largest storable offset below the group to the group's top.

    It serves narrow groups far from zero, where a rounded offset is off by more than the width.
    """
    low, high = of.weights.amin(-1, keepdim=True), of.weights.amax(-1, keepdim=True)
    offset = of.offset.nearest(low)
    stored = of.offset.stored(low)
    outward = torch.where(stored > 0, -1, 1).to(torch.int16)
    below = of.offset.read((stored.view(torch.int16) + outward).view(stored.dtype))
    offset = torch.where(offset > low, below, offset)
    return measure(of, (high - offset) / of.top, offset)


def try_neighbours(of: Lines, best: Line, scales: Sequence[int], offsets: Sequence[int]) -> Line:
    """Try storable numbers next to those of a line, which turns about its middle code."""
    for places in scales:
        scale = of.scale.neighbour(best.scale, places)
        middle = best.offset - (scale - best.scale) * (of.top / 2)
        for further in offsets:
            best = better(best, measure(of, scale, of.offset.neighbour(middle, further)))
    return best
