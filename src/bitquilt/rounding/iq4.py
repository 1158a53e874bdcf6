"""Fits of ggml's uneven 4-bit formats: IQ4_NL and IQ4_XS.

Letters: R rows, C columns, B blocks along a row.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bitquilt.grids.blocks32 import IQ4_NL, IQ4_VALUES
from bitquilt.grids.grid import Fields
from bitquilt.rounding.groups import Storage, fit_by_rows, inverse, power_of_two
from bitquilt.rounding.nearest import fit_family
from bitquilt.rounding.scales import largest, refine_scales, search_scales

BLOCK = 32
LOWEST, HIGHEST = IQ4_VALUES[0], IQ4_VALUES[-1]
MULTIPLES = (*range(LOWEST - 7, LOWEST + 8), -146, -165, -190, -228, 107, 113, 120, 127, 136, 152, 175, 203)
ROUNDS = 2
NEAR = (0.97, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.03)


@cache
def _nearest_codes(device: torch.device) -> Tensor:
    """The code nearest to each half step from LOWEST to HIGHEST, uint8.

    The midpoints between levels are whole or half, so that one code serves all between two steps.
    """
    halves = torch.arange(2 * LOWEST, 2 * HIGHEST + 1, device=device) / 2 + 0.25
    distances = (halves.unsqueeze(1) - torch.tensor(IQ4_VALUES, device=device)).abs()
    return distances.argmin(1).to(torch.uint8)


@cache
def _nearest_levels(device: torch.device) -> Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=device)[
        _nearest_codes(device).long()
    ]


def _lookup(table: Tensor, numbers: Tensor) -> Tensor:
    """What a table of half steps holds for each number."""
    steps = numbers.mul_(2).sub_(2 * LOWEST).clamp_(0, len(table) - 1).int()
    return table.index_select(0, steps.flatten()).view(numbers.shape)


def levels(numbers: Tensor) -> Tensor:
    """The nearest uneven levels."""
    return _lookup(_nearest_levels(numbers.device), numbers)


@fit_family.register
def _nonlinear(grid: IQ4_NL, weight: Tensor, importance: Tensor) -> Fields:
    shares = torch.unflatten(importance, 0, (-1, BLOCK))

    def fit(groups: Tensor) -> Fields:
        unit = power_of_two(groups.abs().amax(-1, keepdim=True))
        groups = groups / unit
        storage = Storage(torch.float16, unit)
        factor = inverse(largest(groups))
        scales = search_scales(groups, shares, levels, factor, MULTIPLES, storage.nearest)
        scales = search_scales(groups, shares, levels, inverse(scales), NEAR, storage.nearest)
        scales = refine_scales(groups, shares, levels, scales, storage.nearest, ROUNDS)
        code = _lookup(_nearest_codes(groups.device), groups * inverse(scales))
        return {"codes": code.flatten(1), "d": storage.stored(scales).float().flatten(1)}

    return fit_by_rows(weight, BLOCK, fit)
