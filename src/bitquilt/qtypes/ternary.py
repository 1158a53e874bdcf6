# ruff: noqa: N801 (classes are named as the formats are)
"""ggml's ternary formats: -d, 0 and d, one scale for 256 weights. For models that are trained so.

Letters: R rows, C columns, B = C / 256 blocks along a row.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_tq1_0, block_tq2_0), ggml-quants.c.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.bits import from_halves, from_planes, halves, planes
from bitquilt.qtypes.blocks32 import Symmetric
from bitquilt.qtypes.ggml import SUPER_BLOCK, blocks_of
from bitquilt.qtypes.qtype import Packed, Unpacked, register

TRITS = 5
"""Digits of base three in a byte."""
BASE_CODES = 3**TRITS


class Ternary(Symmetric):
    """Levels d · code, the code -1, 0 or 1."""

    block = SUPER_BLOCK
    low, high = -1, 1


class TQ1_0(Ternary):
    """1.6875 bits: qs(48) qh(4) d(2)."""

    # A byte is ⌈256 / 243 · number⌉: times three, and again, what it carries is the next digit.
    #
    # qs[i], i < 32     weights i, i + 32, … i + 128           five digits, the first highest
    # qs[32 + i]        weights 160 + i, 176 + i, … 224 + i
    # qh[i]             weights 240 + i, 244 + i, … 252 + i    four digits, and a zero

    name = "TQ1_0"
    sections: ClassVar = {"qs": 48, "qh": 4, "d": 2}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -1 … 1, ``d`` float32 [R, B].

        Thirteen bytes stand for numbers that others stand for, too; ggml writes none of them.
        """
        s = self.split(packed)
        runs = (s["qs"][..., :32], TRITS), (s["qs"][..., 32:], TRITS), (s["qh"], TRITS - 1)
        # [R, B, n bytes] -> [R, B, digits, n] -> [R, B, 256]
        stored = torch.cat([_trits(octets, count).flatten(2) for octets, count in runs], dim=2)
        return {"codes": stored.flatten(1) + self.low, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        stored = blocks_of(fields["codes"] - self.low, SUPER_BLOCK)
        parts = stored.split_with_sizes([160, 80, 16], dim=2)
        wide, narrow, rest = (
            _from_trits(torch.unflatten(part, 2, (count, -1)))
            for part, count in zip(parts, (TRITS, TRITS, TRITS - 1), strict=True)
        )
        scales = from_halves(blocks_of(fields["d"], 1))
        return self.join(qs=torch.cat([wide, narrow], dim=2), qh=rest, d=scales)


def _trits(octets: Tensor, count: int) -> Tensor:
    """Read the first digits of bytes [..., n], int8 [..., count, n] in 0 … 2."""
    powers = 3 ** torch.arange(count, device=octets.device).unsqueeze(-1)
    left: Tensor = octets.unsqueeze(-2).long() * powers & 255
    return (left * 3 >> 8).to(torch.int8)


def _from_trits(digits: Tensor) -> Tensor:
    """Undo :func:`_trits`: [..., count, n] to bytes [..., n]."""
    places = torch.arange(TRITS - 1, TRITS - 1 - digits.shape[-2], -1, device=digits.device)
    number: Tensor = (digits.long() * 3 ** places.unsqueeze(-1)).sum(-2)
    scaled = number * 256 + BASE_CODES - 1
    return torch.div(scaled, BASE_CODES, rounding_mode="floor").to(torch.uint8)


class TQ2_0(Ternary):
    """2.0625 bits: qs(64) d(2)."""

    # qs[32 j + i]   7 6                    5 4         3 2         1 0
    #                w[128 j + 96 + i]      w[.. + 64]  w[.. + 32]  w[128 j + i]    the code + 1

    name = "TQ2_0"
    sections: ClassVar = {"qs": 64, "d": 2}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -1 … 1 (or 2, which ggml writes nowhere), ``d`` float32
        [R, B].
        """
        s = self.split(packed)
        # [R, B, 64] -> [R, B, 2, 32] -> [R, B, 2, 4, 32]
        stored = planes(torch.unflatten(s["qs"], 2, (2, 32)), 2)
        codes = stored.flatten(1).to(torch.int8) + self.low
        return {"codes": codes, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        stored = (fields["codes"] - self.low).to(torch.uint8)
        qs = from_planes(torch.unflatten(stored, 1, (-1, 2, 4, 32)), 2).flatten(2)
        return self.join(qs=qs, d=from_halves(blocks_of(fields["d"], 1)))


for qtype in (TQ1_0(), TQ2_0()):
    register(qtype)
