"""The fit of MXFP4 and MXFP8: which power of two each group of 32 takes.

Letters: R rows, C columns, N = C / 32 groups along a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitquilt.qtypes.mxfp4 import EXPONENT_BIAS, MXFP4_GROUP, FourBitFloats, Microscaled
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import dot, fit_by_rows
from bitquilt.rounding.tables import LevelTable, level_table

MXFP4_TABLE = LevelTable(FourBitFloats.table, cells=4)
SHIFTS = (0, -1, -2)
"""Exponents that are tried, from the least that clips nothing on: lower ones clip the largest."""


@fit_family.register
def _microscaled(qtype: Microscaled, weight: Tensor, importance: Tensor) -> Unpacked:
    """Per group the exponent of least error; mx.quantize's and ggml's are among those tried."""
    table = level_table(qtype)
    assert table is not None

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        clipless = _least_clipless(groups, qtype.largest)
        scaled = groups * torch.exp2(-clipless)
        errors = [
            torch.where(
                clipless + shift < -EXPONENT_BIAS,
                torch.inf,
                _error(table, scaled, shares, shift),
            )
            for shift in SHIFTS
        ]
        shift = torch.tensor(SHIFTS, device=groups.device)[torch.stack(errors).argmin(0)]
        return {
            "codes": table.codes(scaled * torch.exp2(-shift)).flatten(1),
            "exponents": (clipless.int() + shift.int()).flatten(1),
        }

    return fit_by_rows(weight, importance, MXFP4_GROUP, fit)


def _error(table: LevelTable, scaled: Tensor, importance: Tensor, shift: int) -> Tensor:
    """Weighted squared error of each group under 2^shift, [R, N, 1]."""
    numbers = scaled * 2.0**-shift
    gap = numbers - table.levels(numbers.clone())
    return dot(gap.square_(), importance) * 4.0**shift


def _least_clipless(groups: Tensor, most: float) -> Tensor:
    """Find the least e that clips nothing, most · 2^e ≥ the largest weight; float32 [R, N, 1].

    0 for a group of zeros. Groups below 2^-127 take the least there is, where mx.quantize
    overflows; the highest is that of which every level is a float32.
    """
    largest = groups.abs().amax(-1, keepdim=True) / most
    mantissa, exponent = torch.frexp(largest)
    # largest = mantissa 2^exponent, mantissa in [½, 1): ½ is an exact power of two
    ceiling = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return (
        torch.where(largest == 0, 0, ceiling)
        .clamp(-EXPONENT_BIAS, EXPONENT_BIAS - math.floor(math.log2(most)))
        .float()
    )
