"""MXFP4 as MLX stores it: groups of 32 four-bit floats under one power of two.

    weight    uint32 [R, C / 8]    eight codes a word, the first lowest
    scales    uint8  [R, C / 32]   e8m0: the exponent of two plus 127

    code      3      2 1        0          value (-1)^sign · {0, ½, 1, 1½, 2, 3, 4, 6}
              sign   exponent   mantissa

Letters: R rows, C columns, N = C / 32 groups along a row.
Source: OCP Microscaling Formats 1.0; ml-explore/mlx, mlx/fast.cpp (Quantize, mode mxfp4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.grids.grid import Fields, Levels, Packed, ScalarGrid, register
from bitquilt.grids.mlx import from_stream, round_by_rows, to_stream

GROUP = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
EXPONENT_BIAS = 127


class MxFp4(ScalarGrid):
    """MLX's mode ``mxfp4``."""

    name = "mxfp4"
    targets = frozenset({"mlx"})
    block = GROUP
    block_bits = 4 * GROUP + 8
    low, high = 0, 15
    table = MAGNITUDES + tuple(-magnitude for magnitude in MAGNITUDES)

    def round_nearest(self, weight: Tensor, importance: Tensor | None) -> Packed:
        """Without importance: what ``mx.quantize`` makes of the matrix in bfloat16, bit for bit.

        With importance: per group the best, by weighted squared error, of that exponent and the one
        below, which clips the largest weights to place the others better.
        """
        self.check_fits(weight.shape[1])
        # [R, C] -> [R, N, 32]
        groups = torch.unflatten(weight.float(), 1, (-1, GROUP))
        if importance is None:
            return round_by_rows(groups, lambda chunk: self.pack(_stock(chunk)))
        weights = torch.unflatten(importance.float(), 0, (-1, GROUP)).to(weight.device)
        return round_by_rows(groups, lambda chunk: self.pack(_search(chunk, weights)))

    def unpack(self, packed: Packed) -> Fields:
        """``codes`` uint8 [R, C] in 0 … 15, ``exponents`` int32 [R, N] in -127 … 127."""
        exponents = packed["scales"].int() - EXPONENT_BIAS
        return {"codes": from_stream(packed["weight"], 4), "exponents": exponents}

    def pack(self, fields: Fields) -> Packed:
        scales = (fields["exponents"] + EXPONENT_BIAS).to(torch.uint8)
        return {"weight": to_stream(fields["codes"], 4), "scales": scales}

    def levels(self, fields: Fields) -> Levels:
        exponents = fields["exponents"]
        return Levels(torch.ldexp(torch.ones_like(exponents).float(), exponents), None)


def _stock(groups: Tensor) -> Fields:
    """mx.quantize's rule on [R, N, 32] in bfloat16."""
    groups = groups.bfloat16().float()
    exponents = _smallest_exponents(groups)
    return _fields(_nearest(groups, exponents), exponents)


def _search(groups: Tensor, importance: Tensor) -> Fields:
    """The better of the stock exponent and the one below, per group of [R, N, 32]."""
    stock = _stock(groups)
    codes = stock["codes"].view(groups.shape)
    exponents = stock["exponents"].unsqueeze(-1)
    lower = (exponents - 1).clamp_min(-EXPONENT_BIAS)
    lower_codes = _nearest(groups, lower)
    error = _error(groups, importance, codes, exponents)
    better = _error(groups, importance, lower_codes, lower) < error
    return _fields(torch.where(better, lower_codes, codes), torch.where(better, lower, exponents))


def _fields(codes: Tensor, exponents: Tensor) -> Fields:
    """Codes [R, N, 32] and exponents [R, N, 1] in the shapes of fields."""
    return {"codes": codes.flatten(1), "exponents": exponents.squeeze(-1)}


def _smallest_exponents(groups: Tensor) -> Tensor:
    """The least exponent that clips nothing: 6 · 2^e ≥ the largest weight; int32 [R, N, 1].

    A group of zeros has exponent 0. Groups below 2^-127 take the smallest there is, where
    mx.quantize overflows.
    """
    largest = groups.abs().amax(-1, keepdim=True) / MAGNITUDES[-1]
    mantissa, exponent = torch.frexp(largest)
    # largest = mantissa 2^exponent, mantissa in [½, 1): ½ is an exact power of two
    ceiling = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.where(largest == 0, 0, ceiling).clamp_min(-EXPONENT_BIAS)


def _nearest(groups: Tensor, exponents: Tensor) -> Tensor:
    """The nearest code of each weight, ties to the smaller magnitude; uint8 [R, N, 32]."""
    scaled = torch.ldexp(groups, -exponents)
    midpoints = torch.tensor(MIDPOINTS, device=groups.device)
    magnitude = torch.bucketize(scaled.abs(), midpoints, out_int32=True)
    sign = (scaled < 0) & (magnitude > 0)
    return (magnitude | sign.int() << 3).to(torch.uint8)


def _values(codes: Tensor, exponents: Tensor) -> Tensor:
    """What codes [R, N, 32] stand for under exponents [R, N, 1]: float32 [R, N, 32]."""
    return torch.ldexp(torch.tensor(MxFp4.table, device=codes.device)[codes.int()], exponents)


def _error(groups: Tensor, importance: Tensor, codes: Tensor, exponents: Tensor) -> Tensor:
    """Weighted squared error of each group, [R, N, 1]."""
    return ((_values(codes, exponents) - groups).square() * importance).sum(-1, keepdim=True)


register(MxFp4())
