# ruff: noqa: N801 (classes are named as the formats are)
"""ggml's 4-bit formats with uneven levels: IQ4_NL (blocks of 32) and IQ4_XS (super-blocks of 256).

They count as i-quants in ggml, but code every weight by itself: a code is an index into 16 levels
that lie closer together near zero.

Letters: R rows, C columns, B blocks (IQ4_NL) or super-blocks (IQ4_XS) along a row.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_iq4_nl, block_iq4_xs).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from bitquilt.qtypes.bits import digits, from_digits, from_halves, from_planes, halves, planes
from bitquilt.qtypes.blocks32 import from_nibbles, nibbles
from bitquilt.qtypes.ggml import SMALL_BLOCK, SUPER_BLOCK, GgmlQuantType, blocks_of, times
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The 16 levels of the uneven 4-bit formats, IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl)."""


class IQ4_NL(GgmlQuantType, ScalarQuantType):
    """4.5 bits: d(2) qs(16); levels d · IQ4_VALUES[code]."""

    name = "IQ4_NL"
    low, high = 0, 15
    table = IQ4_VALUES
    block = SMALL_BLOCK
    sections: ClassVar = {"d": 2, "qs": 16}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``d`` float32 [R, B]."""
        s = self.split(packed)
        return {"codes": nibbles(s["qs"]), "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        d = from_halves(blocks_of(fields["d"], 1))
        return self.join(d=d, qs=from_nibbles(fields["codes"]))

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(fields["d"], None)


class IQ4_XS(GgmlQuantType, ScalarQuantType):
    """4.25 bits, scales of 32: d(2) scales_h(2) scales_l(4) qs(128); uneven levels."""

    # qs[i]           7 6 5 4        3 2 1 0          i < 16; the next 16 bytes hold the next 32
    #                 w[i+16]        w[i]
    #
    # scales_l[j]     7 6 5 4        3 2 1 0          the low four bits of scale + 32
    #                 scale[2j+1]    scale[2j]
    #
    # scales_h        16 bits, of which 2 j and 2 j + 1 are the high two of scale[j]
    #
    # A weight is d · scale · IQ4_VALUES[code].

    name = "IQ4_XS"
    low, high = 0, 15
    table = IQ4_VALUES
    block = SUPER_BLOCK
    sections: ClassVar = {"d": 2, "scales_h": 2, "scales_l": 4, "qs": 128}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``scales`` int8 [R, C / 32] in -32 … 31,
        ``d`` float32 [R, B].
        """
        s = self.split(packed)
        scales = digits(s["scales_l"], 4) | digits(s["scales_h"], 2) << 4
        return {
            "codes": planes(torch.unflatten(s["qs"], 2, (8, 16)), 4).flatten(1),
            "scales": (scales.to(torch.int8) - 32).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        scales = blocks_of((fields["scales"] + 32).to(torch.uint8), 8)
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            scales_h=from_digits(scales >> 4, 2),
            scales_l=from_digits(scales & 15, 4),
            qs=from_planes(torch.unflatten(fields["codes"], 1, (-1, 8, 2, 16)), 4).flatten(2),
        )

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(times(fields["scales"], fields["d"]), None)


for qtype in (IQ4_NL(), IQ4_XS()):
    register(qtype)
