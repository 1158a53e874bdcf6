"""MXFP4, 32 four-bit floats under one power of two: MLX stores ``mxfp4``, ggml ``MXFP4``.

    code      3      2 1        0          value (-1)^sign · {0, ½, 1, 1½, 2, 3, 4, 6}
              sign   exponent   mantissa

    exponent  e8m0: the exponent of two plus 127

Letters: R rows, C columns, N = C / 32 groups along a row.
Source: OCP Microscaling Formats 1.0; ml-explore/mlx, mlx/fast.cpp (Quantize, mode mxfp4);
ggml-org/llama.cpp, ggml/src/ggml-common.h (block_mxfp4).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from bitquilt.qtypes.blocks32 import from_nibbles, nibbles
from bitquilt.qtypes.ggml import GgmlQuantType, blocks_of
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register
from bitquilt.runtime.bit_stream import from_stream, to_stream

MXFP4_GROUP = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EXPONENT_BIAS = 127


class Microscaled(ScalarQuantType):
    """Groups of 32 small floats under one power of two each, whoever stores them."""

    block = MXFP4_GROUP
    low = 0
    largest: ClassVar[float]
    """The largest number before scaling."""

    def levels(self, fields: Unpacked) -> LevelMap:
        exponents = fields["exponents"]
        return LevelMap(torch.ldexp(torch.ones_like(exponents).float(), exponents), None)


class FourBitFloats(Microscaled):
    """The numbers of MXFP4."""

    high = 15
    largest = MAGNITUDES[-1]
    table = MAGNITUDES + tuple(-magnitude for magnitude in MAGNITUDES)


class MlxMxFp4(FourBitFloats):
    """The type that mlx calls mode ``mxfp4``.

    weight    uint32 [R, C / 8]    eight codes a word, the first lowest
    scales    uint8  [R, N]        the exponents
    """

    name = "mxfp4"
    targets = frozenset({"mlx"})
    block_bits = 4 * MXFP4_GROUP + 8

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``exponents`` int32 [R, N] in -127 … 128."""
        exponents = packed["scales"].int() - EXPONENT_BIAS
        return {"codes": from_stream(packed["weight"], 4), "exponents": exponents}

    def pack(self, fields: Unpacked) -> Packed:
        scales = (fields["exponents"] + EXPONENT_BIAS).to(torch.uint8)
        return {"weight": to_stream(fields["codes"], 4), "scales": scales}


class GgmlMxFp4(GgmlQuantType, FourBitFloats):
    """4.25 bits: e(1) qs(16), the nibbles as in Q4_0."""

    name = "MXFP4"
    sections: ClassVar = {"e": 1, "qs": 16}
    half_sections = ()

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``exponents`` int32 [R, N] in -127 … 128."""
        s = self.split(packed)
        exponents = s["e"].flatten(1).int() - EXPONENT_BIAS
        return {"codes": nibbles(s["qs"]), "exponents": exponents}

    def pack(self, fields: Unpacked) -> Packed:
        scales = (fields["exponents"] + EXPONENT_BIAS).to(torch.uint8)
        return self.join(e=blocks_of(scales, 1), qs=from_nibbles(fields["codes"]))


for qtype in (MlxMxFp4(), GgmlMxFp4()):
    register(qtype)
