# ruff: noqa: N801 (classes are named as the formats are)
"""The K-quants: super-blocks of 256 whose sub-block scales are themselves quantized.

Letters: R rows, C columns, B = C / 256 super-blocks along a row, S sub-blocks in a super-block.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q2_K … block_q6_K).

Two shapes of level:

    Q2_K Q4_K Q5_K   d · scale · code - dmin · min    everything unsigned
    Q3_K Q6_K        d · scale · code                 scale and code signed
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.bits import from_halves, from_planes, halves, planes
from bitquilt.qtypes.ggml import SUPER_BLOCK, GgmlQuantType, blocks_of, times
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register


class WithMins(GgmlQuantType, ScalarQuantType):
    """Levels d · scale · code - dmin · min: Q2_K, Q4_K and Q5_K."""

    block = SUPER_BLOCK
    half_sections = ("d", "dmin")

    low = 0
    sub_block: ClassVar[int]
    """Weights in a sub-block."""
    highest_scale: ClassVar[int]
    """The largest integer for a scale, and for a min; the smallest is 0."""

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(
            times(fields["scales"], fields["d"]), -times(fields["mins"], fields["dmin"])
        )


class Signed(GgmlQuantType, ScalarQuantType):
    """Levels d · scale · code: Q3_K and Q6_K."""

    block = SUPER_BLOCK
    sub_block = 16
    """Weights in a sub-block."""
    lowest_scale: ClassVar[int]
    highest_scale: ClassVar[int]
    """The range of the integer scales."""

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(times(fields["scales"], fields["d"]), None)


class Q2_K(WithMins):
    """2.625 bits, sub-blocks of 16: scales(16) qs(64) d(2) dmin(2)."""

    # scales[j]   7 6 5 4   3 2 1 0
    #             min[j]    scale[j]
    #
    # qs[i]       7 6      5 4      3 2      1 0        i < 32; the next 32 bytes likewise
    #             w[i+96]  w[i+64]  w[i+32]  w[i]       for weights 128 … 255

    name = "Q2_K"
    high = 3
    sub_block = 16
    highest_scale = 15
    sections: ClassVar = {"scales": 16, "qs": 64, "d": 2, "dmin": 2}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 3, ``scales`` and ``mins`` uint8 [R, C / 16] in
        0 … 15, ``d`` and ``dmin`` float32 [R, B].
        """
        s = self.split(packed)
        return {
            "codes": planes(torch.unflatten(s["qs"], 2, (2, 32)), 2).flatten(1),
            "scales": (s["scales"] & 15).flatten(1),
            "mins": (s["scales"] >> 4).flatten(1),
            "d": halves(s["d"]).flatten(1),
            "dmin": halves(s["dmin"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        # [R, C] -> [R, B, 2, 4 planes, 32] -> [R, B, 64]
        codes = torch.unflatten(fields["codes"], 1, (-1, 2, 4, 32))
        return self.join(
            scales=blocks_of(fields["scales"] | fields["mins"] << 4, 16),
            qs=from_planes(codes, 2).flatten(2),
            d=from_halves(blocks_of(fields["d"], 1)),
            dmin=from_halves(blocks_of(fields["dmin"], 1)),
        )


class Q3_K(Signed):
    """3.4375 bits, sub-blocks of 16: hmask(32) qs(64) scales(12) d(2)."""

    # qs                the low two bits of code + 4, laid out as Q2_K's
    #
    # hmask[i], bit k   the third bit of weight i + 32 k
    #
    # scales[j]         7 6 5 4         3 2 1 0                      low bits of scale + 32, j < 8
    #                   scale[j+8]      scale[j]
    #
    # scales[8+j]       7 6           5 4          3 2          1 0         its high bits, j < 4
    #                   scale[j+12]   scale[j+8]   scale[j+4]   scale[j]

    name = "Q3_K"
    low = -4
    high = 3
    lowest_scale = -32
    highest_scale = 31
    sections: ClassVar = {"hmask": 32, "qs": 64, "scales": 12, "d": 2}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -4 … 3, ``scales`` int8 [R, C / 16] in -32 … 31,
        ``d`` float32 [R, B].
        """
        s = self.split(packed)
        codes = planes(torch.unflatten(s["qs"], 2, (2, 32)), 2).flatten(1)
        codes |= planes(s["hmask"], 1).flatten(1) << 2
        scales = planes(s["scales"][..., :8], 4).flatten(1)
        scales |= planes(s["scales"][..., 8:], 2).flatten(1) << 4
        return {
            "codes": codes.to(torch.int8) - 4,
            "scales": scales.to(torch.int8) - 32,
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = (fields["codes"] + 4).to(torch.uint8)
        scales = (fields["scales"] + 32).to(torch.uint8)
        low = from_planes(torch.unflatten(scales & 15, 1, (-1, 2, 8)), 4)
        high = from_planes(torch.unflatten(scales >> 4, 1, (-1, 4, 4)), 2)
        return self.join(
            hmask=from_planes(torch.unflatten(codes >> 2, 1, (-1, 8, 32)), 1),
            qs=from_planes(torch.unflatten(codes & 3, 1, (-1, 2, 4, 32)), 2).flatten(2),
            scales=torch.cat([low, high], dim=-1),
            d=from_halves(blocks_of(fields["d"], 1)),
        )


def _six_bit_pairs(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack 8 scales and 8 mins of Q4_K and Q5_K: bytes [R, B, 12] to two uint8 [R, C / 32]."""
    # byte j         7 6            5 4 3 2 1 0         j < 4
    #                s[j+4] high    s[j]
    # byte 4 + j     7 6            5 4 3 2 1 0
    #                m[j+4] high    m[j]
    # byte 8 + j     7 6 5 4        3 2 1 0
    #                m[j+4] low     s[j+4] low
    first, second, low = scales.split_with_sizes([4, 4, 4], dim=-1)
    s = torch.cat([first & 63, low & 15 | first >> 6 << 4], dim=-1)
    m = torch.cat([second & 63, low >> 4 | second >> 6 << 4], dim=-1)
    return s.flatten(1), m.flatten(1)


def _from_six_bit_pairs(scales: Tensor, mins: Tensor) -> Tensor:
    """Undo :func:`_six_bit_pairs`: [R, B, 12]."""
    s, s4 = blocks_of(scales, 8).chunk(2, dim=-1)
    m, m4 = blocks_of(mins, 8).chunk(2, dim=-1)
    return torch.cat([s | s4 >> 4 << 6, m | m4 >> 4 << 6, s4 & 15 | (m4 & 15) << 4], dim=-1)


class Q4_K(WithMins):
    """4.5 bits, sub-blocks of 32: d(2) dmin(2) scales(12) qs(128)."""

    # scales      see _six_bit_pairs
    #
    # qs[i]       7 6 5 4   3 2 1 0       i < 32; each further 32 bytes hold the next 64 weights
    #             w[i+32]   w[i]

    name = "Q4_K"
    high = 15
    sub_block = 32
    highest_scale = 63
    sections: ClassVar = {"d": 2, "dmin": 2, "scales": 12, "qs": 128}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``scales`` and ``mins`` uint8 [R, C / 32] in
        0 … 63, ``d`` and ``dmin`` float32 [R, B].
        """
        s = self.split(packed)
        scales, mins = _six_bit_pairs(s["scales"])
        return {
            "codes": planes(torch.unflatten(s["qs"], 2, (4, 32)), 4).flatten(1),
            "scales": scales,
            "mins": mins,
            "d": halves(s["d"]).flatten(1),
            "dmin": halves(s["dmin"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            dmin=from_halves(blocks_of(fields["dmin"], 1)),
            scales=_from_six_bit_pairs(fields["scales"], fields["mins"]),
            qs=from_planes(torch.unflatten(fields["codes"], 1, (-1, 4, 2, 32)), 4).flatten(2),
        )


class Q5_K(WithMins):
    """5.5 bits, sub-blocks of 32: d(2) dmin(2) scales(12) qh(32) qs(128)."""

    # scales, qs       as in Q4_K, qs with the low four bits of the codes
    #
    # qh[i], bit k     the fifth bit of weight i + 32 k

    name = "Q5_K"
    high = 31
    sub_block = 32
    highest_scale = 63
    sections: ClassVar = {"d": 2, "dmin": 2, "scales": 12, "qh": 32, "qs": 128}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return what Q4_K does, with ``codes`` in 0 … 31."""
        s = self.split(packed)
        scales, mins = _six_bit_pairs(s["scales"])
        codes = planes(torch.unflatten(s["qs"], 2, (4, 32)), 4).flatten(1)
        return {
            "codes": codes | planes(s["qh"], 1).flatten(1) << 4,
            "scales": scales,
            "mins": mins,
            "d": halves(s["d"]).flatten(1),
            "dmin": halves(s["dmin"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = fields["codes"]
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            dmin=from_halves(blocks_of(fields["dmin"], 1)),
            scales=_from_six_bit_pairs(fields["scales"], fields["mins"]),
            qh=from_planes(torch.unflatten(codes >> 4, 1, (-1, 8, 32)), 1),
            qs=from_planes(torch.unflatten(codes & 15, 1, (-1, 4, 2, 32)), 4).flatten(2),
        )


class Q6_K(Signed):
    """6.5625 bits, sub-blocks of 16: ql(128) qh(64) scales(16, signed) d(2)."""

    # ql[i]       7 6 5 4   3 2 1 0                  the low four bits of code + 32, i < 64
    #             w[i+64]   w[i]
    #
    # qh[i]       7 6      5 4      3 2      1 0     its high two bits, i < 32
    #             w[i+96]  w[i+64]  w[i+32]  w[i]
    #
    # The second half of ql and of qh serves weights 128 … 255.

    name = "Q6_K"
    low = -32
    high = 31
    lowest_scale = -128
    highest_scale = 127
    sections: ClassVar = {"ql": 128, "qh": 64, "scales": 16, "d": 2}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -32 … 31, ``scales`` int8 [R, C / 16], ``d`` float32
        [R, B].
        """
        s = self.split(packed)
        codes = planes(torch.unflatten(s["ql"], 2, (2, 64)), 4).flatten(1)
        codes |= planes(torch.unflatten(s["qh"], 2, (2, 32)), 2).flatten(1) << 4
        return {
            "codes": codes.to(torch.int8) - 32,
            "scales": s["scales"].contiguous().view(torch.int8).flatten(1),
            "d": halves(s["d"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        codes = (fields["codes"] + 32).to(torch.uint8)
        return self.join(
            ql=from_planes(torch.unflatten(codes & 15, 1, (-1, 2, 2, 64)), 4).flatten(2),
            qh=from_planes(torch.unflatten(codes >> 4, 1, (-1, 2, 4, 32)), 2).flatten(2),
            scales=blocks_of(fields["scales"].contiguous(), 16).view(torch.uint8),
            d=from_halves(blocks_of(fields["d"], 1)),
        )


for qtype in (Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K()):
    register(qtype)
