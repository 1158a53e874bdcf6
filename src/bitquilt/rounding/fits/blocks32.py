"""Fits of ggml's small blocks: Q2_0, Q4_0, Q5_0, Q4_1, Q5_1 and Q8_0; and of TQ1_0 and TQ2_0.

Letters: R rows, C columns, B blocks along a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.qtypes.blocks32 import Q2_0, Q4_0, Q8_0, Asymmetric, Symmetric
from bitquilt.qtypes.ggml import SMALL_BLOCK
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.qtypes.ternary import Ternary
from bitquilt.rounding.fits.affine_search import (
    Line,
    Lines,
    alternate,
    better,
    codes,
    from_below,
    lines,
    measure,
    search_range,
    walk,
)
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import Storage, dot, fit_by_rows, inverse, power_of_two
from bitquilt.rounding.fits.scale_search import (
    NearestLevels,
    furthest_weight,
    improve_scales,
    search_scales,
)

RANGE_CUTS = (0.0, 0.15, 0.35)
"""Parts of half a block's range by which the search draws in either end."""
GGML_STEPS = tuple(i / 20 for i in range(-18, 19))
"""The steps about the top code that ggml tries for Q4_1 and Q5_1."""
GGML_LOWEST_STEPS = tuple(-i / 10 for i in range(-9, 10))
"""The steps about the lowest code that ggml tries for Q4_0 and Q5_0, for the largest weight."""
CLIPPED = (1.25, 1.5)
"""Multiples of the lowest code: further starts, which clip the largest weight."""
REVERSED = (1.0, 1.08, 1.3)
"""Multiples of the highest code: starts with the other sign."""
INSIDE = (1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6, -7)
"""Further codes of Q4_0: weights that were trained for it have no larger one in some blocks."""
Q2_0_STARTS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.65, 2.9, 3.2, 3.6, 4.2, 5.0)
"""Where the search starts the largest weight of a block of Q2_0, with either sign.

ggml leaves it at 1. Beyond 2 it is clipped, as suits four levels.
"""


@fit_family.register
def _symmetric(qtype: Symmetric, weight: Tensor, importance: Tensor) -> Unpacked:
    """Try both signs of the scale, as the codes reach one step further below than above."""
    levels = _integers(qtype.low, qtype.high)
    starts = _starts(qtype)

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        groups, storage = _scaled(groups)
        factor = inverse(furthest_weight(groups))
        scales = search_scales(groups, shares, levels, factor, starts, storage.nearest)
        scales = improve_scales(groups, shares, levels, scales, storage.nearest, rounds=1)
        return _fields(groups, levels, scales, storage)

    return fit_by_rows(weight, importance, qtype.block, fit)


def _starts(qtype: Symmetric) -> tuple[float, ...]:
    """Return the places among the codes where the search starts the largest weight."""
    if isinstance(qtype, Ternary):
        return Q2_0_STARTS
    if isinstance(qtype, Q2_0):
        return (*Q2_0_STARTS, *(-start for start in Q2_0_STARTS))
    return (
        *(qtype.low + turned for turned in GGML_LOWEST_STEPS),
        *(qtype.low * part for part in CLIPPED),
        *(qtype.high * part for part in REVERSED),
        *(INSIDE if isinstance(qtype, Q4_0) else ()),
    )


@fit_family.register
def _bytes(qtype: Q8_0, weight: Tensor, importance: Tensor) -> Unpacked:
    """Take the scale that just holds the largest weight, as ggml's, or the best for its codes.

    All is in units of the scale, so nothing overflows. With l the codes and r what they miss by, a
    scale larger by a share m takes m (2 Σ h l r - m Σ h l²) off the error (h importance).
    """

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        scales = (groups.abs().amax(-1, keepdim=True) / qtype.high).half().float()
        wanted = groups * inverse(scales)
        level = wanted.round().clamp_(qtype.low, qtype.high)
        weighted = level * shares
        square, cross = dot(weighted, level), dot(weighted, wanted.sub_(level))
        others = torch.addcmul(scales, scales, cross / square).half().float()
        more = (others - scales) * inverse(scales)
        scales = torch.where(more * (2 * cross - more * square) > 0, others, scales)
        codes = (
            torch.mul(groups, inverse(scales), out=wanted).round_().clamp_(qtype.low, qtype.high)
        )
        return {"codes": codes.to(torch.int8).flatten(1), "d": scales.flatten(1)}

    return fit_by_rows(weight, importance, SMALL_BLOCK, fit)


def _scaled(groups: Tensor) -> tuple[Tensor, Storage]:
    """Blocks with magnitudes up to one, and how their scales are stored."""
    unit = power_of_two(groups.abs().amax(-1, keepdim=True))
    return groups / unit, Storage(torch.float16, unit)


def _integers(low: int, high: int) -> NearestLevels:
    """Levels at all integers from low to high."""
    return lambda numbers: numbers.round_().clamp_(low, high)


def _fields(groups: Tensor, levels: NearestLevels, scales: Tensor, storage: Storage) -> Unpacked:
    """Return codes int8 [R, C] and ``d`` float32 [R, B]."""
    return {
        "codes": levels(groups * inverse(scales)).to(torch.int8).flatten(1),
        "d": storage.stored(scales).float().flatten(1),
    }


@fit_family.register
def _asymmetric(qtype: Asymmetric, weight: Tensor, importance: Tensor) -> Unpacked:
    """Take the better of ggml's line and of lines fitted to clipped ranges, then alternated."""

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        of = lines(groups, shares, qtype.high, torch.float16)
        best = better(from_below(of), _stock(of, groups, shares))
        best = alternate(of, *search_range(of, RANGE_CUTS), best, rounds=1)
        best = alternate(of, best.scale, best.offset, best, rounds=1)
        return {
            "codes": codes(of, best.scale, best.offset).to(torch.uint8).flatten(1),
            "d": of.scale.stored(best.scale).float().flatten(1),
            "m": of.offset.stored(best.offset).float().flatten(1),
        }

    return fit_by_rows(weight, importance, SMALL_BLOCK, fit)


def _stock(of: Lines, groups: Tensor, importance: Tensor) -> Line:
    """Find ggml's lines, for which errors are weighed with the magnitudes in a row too."""
    unit, centre = of.offset.unit, of.offset.origin
    weights = groups / unit
    row = groups.square().mean((-2, -1), keepdim=True) / unit.square()
    scale, offset = walk(weights, importance * (weights.square() + row).sqrt_(), of.top, GGML_STEPS)
    return measure(of, scale, offset - centre / unit)
