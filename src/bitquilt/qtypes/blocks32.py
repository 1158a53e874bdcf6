# ruff: noqa: N801 (classes are named as the formats are)
"""ggml's formats with blocks of 32 weights (Q2_0: 64), for rows that are not a multiple of 256.

IQ4_NL, which has such blocks too, is in :mod:`bitquilt.qtypes.iq4`.

Letters: R rows, C columns, B blocks along a row.
Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (block_q2_0, block_q4_0 … block_q8_0).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.bits import digits, from_digits, from_halves, from_planes, halves, planes
from bitquilt.qtypes.ggml import SMALL_BLOCK, GgmlQuantType, blocks_of
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register

# A nibble byte i holds weights i and i + 16; the fifth bits follow the weights:
#
#     qs[i]   7 6 5 4   3 2 1 0          qh[i]   7 6 5 4 3 2 1 0
#             w[i+16]   w[i]                     w[8i+7] … w[8i]


def nibbles(qs: Tensor) -> Tensor:
    """Read the low four bits of codes [R, C] from bytes [R, B, 16]."""
    # [R, B, 16] -> [R, B, 2, 16] -> [R, C]
    return planes(qs, 4).flatten(1)


def from_nibbles(codes: Tensor) -> Tensor:
    """Undo :func:`nibbles`; higher bits are ignored."""
    return from_planes(torch.unflatten(codes & 15, 1, (-1, 2, 16)), 4)


def _fifth_bits(qh: Tensor) -> Tensor:
    """Turn bytes [R, B, 4] into the fifth bits of the codes, in place (0 or 16), [R, C]."""
    return (digits(qh, 1) << 4).flatten(1)


def _from_fifth_bits(codes: Tensor) -> Tensor:
    """Undo :func:`_fifth_bits`; lower bits are ignored."""
    return from_digits(blocks_of(codes >> 4, 32), 1)


class Symmetric(GgmlQuantType, ScalarQuantType):
    """Levels d · code, the code signed: Q2_0, Q4_0 and Q5_0."""

    block = SMALL_BLOCK

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(fields["d"], None)


class Asymmetric(GgmlQuantType, ScalarQuantType):
    """Levels d · code + m, the code unsigned: Q4_1 and Q5_1."""

    block = SMALL_BLOCK
    half_sections = ("d", "m")

    low = 0

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(fields["d"], fields["m"])


class Q2_0(Symmetric):
    """2.25 bits: d(2) qs(16), the codes in their order; llama.cpp since build b9916."""

    # qs[i]   7 6       5 4       3 2       1 0
    #         w[4i+3]   w[4i+2]   w[4i+1]   w[4i]       each one the code + 1

    name = "Q2_0"
    block = 64
    sections: ClassVar = {"d": 2, "qs": 16}
    low, high = -1, 2

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -1 … 2, ``d`` float32 [R, B]."""
        s = self.split(packed)
        codes = digits(s["qs"], 2).flatten(1).to(torch.int8) + self.low
        return {"codes": codes, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        stored = blocks_of((fields["codes"] - self.low).to(torch.uint8), self.block)
        return self.join(d=from_halves(blocks_of(fields["d"], 1)), qs=from_digits(stored, 2))


class Q4_0(Symmetric):
    """4.5 bits: d(2) qs(16)."""

    name = "Q4_0"
    sections: ClassVar = {"d": 2, "qs": 16}
    low, high = -8, 7

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -8 … 7, ``d`` float32 [R, B]."""
        s = self.split(packed)
        codes = nibbles(s["qs"]).to(torch.int8) + self.low
        return {"codes": codes, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        stored = (fields["codes"] - self.low).to(torch.uint8)
        return self.join(d=from_halves(blocks_of(fields["d"], 1)), qs=from_nibbles(stored))


class Q5_0(Symmetric):
    """5.5 bits: d(2) qh(4) qs(16)."""

    name = "Q5_0"
    sections: ClassVar = {"d": 2, "qh": 4, "qs": 16}
    low, high = -16, 15

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -16 … 15, ``d`` float32 [R, B]."""
        s = self.split(packed)
        stored = nibbles(s["qs"]) | _fifth_bits(s["qh"])
        return {"codes": stored.to(torch.int8) + self.low, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        stored = (fields["codes"] - self.low).to(torch.uint8)
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            qh=_from_fifth_bits(stored),
            qs=from_nibbles(stored),
        )


class Q4_1(Asymmetric):
    """5 bits: d(2) m(2) qs(16)."""

    name = "Q4_1"
    high = 15
    sections: ClassVar = {"d": 2, "m": 2, "qs": 16}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``d`` and ``m`` float32 [R, B]."""
        s = self.split(packed)
        return {
            "codes": nibbles(s["qs"]),
            "d": halves(s["d"]).flatten(1),
            "m": halves(s["m"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            m=from_halves(blocks_of(fields["m"], 1)),
            qs=from_nibbles(fields["codes"]),
        )


class Q5_1(Asymmetric):
    """6 bits: d(2) m(2) qh(4) qs(16)."""

    name = "Q5_1"
    high = 31
    sections: ClassVar = {"d": 2, "m": 2, "qh": 4, "qs": 16}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 31, ``d`` and ``m`` float32 [R, B]."""
        s = self.split(packed)
        return {
            "codes": nibbles(s["qs"]) | _fifth_bits(s["qh"]),
            "d": halves(s["d"]).flatten(1),
            "m": halves(s["m"]).flatten(1),
        }

    def pack(self, fields: Unpacked) -> Packed:
        return self.join(
            d=from_halves(blocks_of(fields["d"], 1)),
            m=from_halves(blocks_of(fields["m"], 1)),
            qh=_from_fifth_bits(fields["codes"]),
            qs=from_nibbles(fields["codes"]),
        )


class Q8_0(GgmlQuantType, ScalarQuantType):
    """8.5 bits: d(2) qs(32), one signed byte a weight; levels d · code."""

    name = "Q8_0"
    low, high = -127, 127
    block = SMALL_BLOCK
    sections: ClassVar = {"d": 2, "qs": 32}

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` int8 [R, C] in -127 … 127, ``d`` float32 [R, B]."""
        s = self.split(packed)
        codes = s["qs"].contiguous().view(torch.int8).flatten(1)
        return {"codes": codes, "d": halves(s["d"]).flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        codes = blocks_of(fields["codes"].contiguous(), 32)
        return self.join(d=from_halves(blocks_of(fields["d"], 1)), qs=codes.view(torch.uint8))

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(fields["d"], None)


for qtype in (Q2_0(), Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q8_0()):
    register(qtype)
