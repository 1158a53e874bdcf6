"""The fit of MLX's affine types: scale and bias of each group, as bfloat16 holds them.

Letters: R rows, C columns, N = C / g groups along a row, g weights in a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.models.lattice import LATTICES, scales_on
from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.qtypes.qtype import Unpacked
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
    try_neighbours,
)
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import fit_by_rows

SMALLEST_SCALE = 1e-7
"""The floor that mx.quantize sets on a scale before it is bent to reach the edge."""
HOLDING = {"4bit-g32": "Q4_0", "2bit-g64": "Q2_0"}
"""The types that hold a lattice, which weights may have been trained for."""
COARSE = (0.0, 0.2, 0.4)
"""Up to 4 bits: parts of half the range by which either end is clipped. That wins much."""
FINE = (0.0, 0.1)
"""From 5 bits on clipping wins little; trying neighbours of the stored numbers wins more."""
STORED_NEIGHBOURS = (-1, 0, 1)
"""Steps from a stored scale or bias to those that are tried."""


@fit_family.register
def _affine(qtype: Affine, weight: Tensor, importance: Tensor) -> Unpacked:
    """Take the best of mlx's own line and of lines fitted to clipped ranges, all as stored."""

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        of = lines(groups, shares, qtype.high, torch.bfloat16)
        best = better(from_below(of), _stock(of, groups))
        if qtype.name in HOLDING:
            best = better(best, _on_lattice(of, groups, HOLDING[qtype.name]))
        best = _fitted(of, best, coarse=qtype.width <= 4)
        return {
            "codes": codes(of, best.scale, best.offset).to(torch.uint8).flatten(1),
            "scales": of.scale.stored(best.scale).flatten(1),
            "biases": of.offset.stored(best.offset).flatten(1),
        }

    return fit_by_rows(weight, importance, qtype.block, fit)


def _on_lattice(of: Lines, groups: Tensor, name: str) -> Line:
    """Find the line whose levels are a lattice's, for groups [R, N, g] that lie on one."""
    lattice = next(each for each in LATTICES if each.name == name)
    scale = scales_on(groups, lattice)[0].bfloat16().float()
    offset = (lattice.low * scale).bfloat16()
    return measure(of, of.scale.read(scale.bfloat16()), of.offset.read(offset))


def _fitted(of: Lines, best: Line, coarse: bool) -> Line:
    if coarse:
        return alternate(of, *search_range(of, COARSE), best, rounds=2)
    best = alternate(of, *search_range(of, FINE), best, rounds=1)
    return try_neighbours(of, best, STORED_NEIGHBOURS, STORED_NEIGHBOURS)


def _stock(of: Lines, groups: Tensor) -> Line:
    """Find mx.quantize's line through groups [R, N, g] in bfloat16.

    The edge furthest from zero is a level exactly, code 0; the scale is bent so that zero is a
    level too. Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp (quantize).
    """
    low = groups.amin(-1, keepdim=True).bfloat16().float()
    high = groups.amax(-1, keepdim=True).bfloat16().float()
    low_is_edge = low.abs() > high.abs()
    scale = ((high - low) / of.top).clamp_min(SMALLEST_SCALE)
    scale = torch.where(low_is_edge, scale, -scale)
    edge = torch.where(low_is_edge, low, high)
    steps_to_zero = (edge / scale).round()
    snaps = steps_to_zero != 0
    scale = torch.where(snaps, edge / steps_to_zero, scale)
    offset = torch.where(snaps, edge, 0.0)
    return measure(of, of.scale.read(scale.bfloat16()), of.offset.read(offset.bfloat16()))
