"""MLX affine grids: groups of 32, 64 or 128 weights on evenly spaced levels scale · code + bias.

    weight    uint32 [R, C bits / 32]   the codes of a row as one little-endian stream of bits
    scales    bfloat16 [R, C / group]
    biases    bfloat16 [R, C / group]

Letters: R rows, C columns, N = C / group groups along a row, g weights in a group.
Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp (quantize, extract_bits). mx.quantize keeps
scales in the dtype of its input; bitquilt always gives it bfloat16, as published models do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.grids.grid import Fields, Levels, Packed, ScalarGrid, register
from bitquilt.grids.mlx import from_stream, round_by_rows, to_stream

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
SMALLEST_SCALE = 1e-7
"""mx.quantize's floor on a scale before it is snapped to the edge."""
SHRINKS = (1.0, 0.9, 0.8, 0.7)
"""Fractions of a group's range that the importance-weighted search spreads its levels over."""
VANISHING = 1e-7
"""Least variance of the codes of a group that a line is fitted through."""


class Affine(ScalarGrid):
    """One pair of bits and group size."""

    targets = frozenset({"mlx"})

    def __init__(self, bits: int, group: int) -> None:
        self.name = f"{bits}bit-g{group}"
        self.width = bits
        self.low, self.high = 0, (1 << bits) - 1
        self.block = group
        self.block_bits = bits * group + 2 * 16

    def round_nearest(self, weight: Tensor, importance: Tensor | None) -> Packed:
        """Without importance: what ``mx.quantize`` makes of the matrix in bfloat16, bit for bit.

        With importance: per group the best, by weighted squared error, of that and of a few levels
        fitted to a shrunken range, codes taken against scale and bias as they are stored.
        """
        self.check_fits(weight.shape[1])
        # [R, C] -> [R, N, g]
        groups = torch.unflatten(weight.float(), 1, (-1, self.block))
        if importance is None:
            return round_by_rows(groups, lambda chunk: self.pack(self._stock(chunk)))
        shares = torch.unflatten(importance.float(), 0, (-1, self.block)).to(weight.device)
        shares = shares / shares.sum(-1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
        return round_by_rows(groups, lambda chunk: self.pack(self._search(chunk, shares)))

    def unpack(self, packed: Packed) -> Fields:
        """``codes`` uint8 [R, C] in 0 … 2^bits - 1, ``scales`` and ``biases`` bfloat16 [R, N]."""
        codes = from_stream(packed["weight"], self.width)
        return {"codes": codes, "scales": packed["scales"], "biases": packed["biases"]}

    def pack(self, fields: Fields) -> Packed:
        words = to_stream(fields["codes"], self.width)
        return {"weight": words, "scales": fields["scales"], "biases": fields["biases"]}

    def levels(self, fields: Fields) -> Levels:
        return Levels(fields["scales"].float(), fields["biases"].float())

    def _codes(self, groups: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
        """The nearest codes on given levels: float32 [R, N, g]; scales and biases [R, N, 1]."""
        return ((groups - biases) / scales).round_().clamp_(0, self.high)

    def _stock(self, groups: Tensor) -> Fields:
        """mx.quantize's rule on [R, N, g] in bfloat16.

        The edge furthest from zero is a level exactly, code 0; the scale is bent so that zero is a
        level too. Codes are taken before scale and bias are rounded to bfloat16, as mlx does.
        """
        groups = groups.bfloat16().float()
        low, high = groups.aminmax(dim=-1, keepdim=True)
        low_is_edge = low.abs() > high.abs()
        scales = ((high - low) / self.high).clamp_min(SMALLEST_SCALE)
        scales = torch.where(low_is_edge, scales, -scales)
        edge = torch.where(low_is_edge, low, high)
        steps_to_zero = (edge / scales).round()
        snaps = steps_to_zero != 0
        scales = torch.where(snaps, edge / steps_to_zero, scales)
        biases = torch.where(snaps, edge, 0.0)
        return _fields(self._codes(groups, scales, biases), scales, biases)

    def _search(self, groups: Tensor, shares: Tensor) -> Fields:
        """The best of the stock rounding and of fitted levels, per group of [R, N, g].

        ``shares`` [N, g] is the importance, scaled to a sum of one (or zero) in each group.
        """
        best = self._stock(groups)
        codes = best["codes"].view(groups.shape).float()
        scales = best["scales"].float().unsqueeze(-1)
        biases = best["biases"].float().unsqueeze(-1)
        error = _error(groups, shares, codes, scales, biases)
        low, high = groups.aminmax(dim=-1, keepdim=True)
        middle, span = (low + high) / 2, (high - low).clamp_min(SMALLEST_SCALE * self.high)
        for shrink in SHRINKS:
            guess = self._codes(groups, shrink * span / self.high, middle - shrink * span / 2)
            new_scales, new_biases = _fit(groups, shares, guess)
            new_codes = self._codes(groups, new_scales, new_biases)
            new_error = _error(groups, shares, new_codes, new_scales, new_biases)
            better = new_error < error
            error = torch.where(better, new_error, error)
            codes = torch.where(better, new_codes, codes)
            scales = torch.where(better, new_scales, scales)
            biases = torch.where(better, new_biases, biases)
        return _fields(codes, scales, biases)


def _levels(codes: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    return codes * scales + biases


def _error(groups: Tensor, shares: Tensor, codes: Tensor, scales: Tensor, biases: Tensor) -> Tensor:
    """Weighted squared error of each group, [R, N, 1]."""
    gap = _levels(codes, scales, biases).sub_(groups).square_()
    return gap.mul_(shares).sum(-1, keepdim=True)


def _fit(groups: Tensor, shares: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias of least weighted squared error for given codes, rounded to bfloat16.

    The bias is rounded first and the scale fitted to it as it is stored. Both are [R, N, 1].
    """
    # Weighted means over a group of weight, code, code² and code · weight.
    shared = shares * codes
    weight = (shares * groups).sum(-1, keepdim=True)
    code = shared.sum(-1, keepdim=True)
    square = (shared * codes).sum(-1, keepdim=True)
    product = (shared * groups).sum(-1, keepdim=True)
    slope = (product - code * weight) / (square - code.square()).clamp_min(VANISHING)
    biases = (weight - slope * code).bfloat16().float()
    scales = (product - biases * code) / square.clamp_min(VANISHING)
    # A scale of zero would divide by zero.
    scales = torch.where(scales.abs() < SMALLEST_SCALE, SMALLEST_SCALE, scales)
    return scales.bfloat16().float(), biases


def _fields(codes: Tensor, scales: Tensor, biases: Tensor) -> Fields:
    """Float32 codes [R, N, g], scales and biases [R, N, 1] in the dtypes and shapes of fields."""
    return {
        "codes": codes.to(torch.uint8).flatten(1),
        "scales": scales.squeeze(-1).bfloat16(),
        "biases": biases.squeeze(-1).bfloat16(),
    }


for bits in BITS:
    for group in GROUPS:
        register(Affine(bits, group))
