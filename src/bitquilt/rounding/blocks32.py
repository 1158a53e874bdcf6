"""Fits of ggml's blocks of 32: Q4_0, Q5_0, Q4_1, Q5_1 and Q8_0.

Letters: R rows, C columns, B = C / 32 blocks along a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.grids.blocks32 import Q8_0, Asymmetric, Symmetric
from bitquilt.grids.grid import Fields
from bitquilt.rounding.groups import Storage, fit_by_rows, inverse, power_of_two
from bitquilt.rounding.lines import better, codes, from_below, lines, measure, refine, search_range, walk
from bitquilt.rounding.nearest import fit_family
from bitquilt.rounding.scales import largest, refine_scales, search_scales

BLOCK = 32
PARTS = (0.0, 0.15, 0.35)
TURNS = tuple(i / 20 for i in range(-18, 19))
ROUNDS = 2


@fit_family.register
def _symmetric(grid: Symmetric, weight: Tensor, importance: Tensor) -> Fields:
    """Both signs of the scale are tried: the codes reach one step further below than above."""
    low, high = grid.low, grid.high
    shares = torch.unflatten(importance, 0, (-1, BLOCK))

    multiples = [low - i / 10 for i in range(-9, 10)] + [low * f for f in (1.25, 1.5)] + [high * f for f in (1, 1.08, 1.3)]

    def levels(numbers: Tensor) -> Tensor:
        return numbers.round_().clamp_(low, high)

    def fit(groups: Tensor) -> Fields:
        unit = power_of_two(groups.abs().amax(-1, keepdim=True))
        groups = groups / unit
        storage = Storage(torch.float16, unit)
        factor = inverse(largest(groups))
        scales = search_scales(groups, shares, levels, factor, multiples, storage.nearest)
        scales = refine_scales(groups, shares, levels, scales, storage.nearest, ROUNDS)
        code = levels(groups * inverse(scales))
        return {
            "codes": code.to(torch.int8).flatten(1),
            "d": storage.stored(scales).float().flatten(1),
        }

    return fit_by_rows(weight, BLOCK, fit)


@fit_family.register
def _asymmetric(grid: Asymmetric, weight: Tensor, importance: Tensor) -> Fields:
    shares = torch.unflatten(importance, 0, (-1, BLOCK))
    top = grid.high

    def fit(groups: Tensor) -> Fields:
        of = lines(groups, shares, top, torch.float16)
        # ggml weighs errors with the magnitudes in a row too.
        spread = groups.square().mean((-2, -1), keepdim=True)
        stock = walk(of, shares * (spread + groups.square()).sqrt_(), TURNS)
        best = better(from_below(of), measure(of, *stock))
        best = refine(of, *search_range(of, PARTS), best, 1)
        best = refine(of, best.scale, best.offset, best, 1)
        return {
            "codes": codes(of, best.scale, best.offset).to(torch.uint8).flatten(1),
            "d": of.scale.stored(best.scale).float().flatten(1),
            "m": of.offset.stored(best.offset).float().flatten(1),
        }

    return fit_by_rows(weight, BLOCK, fit)


