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

from bitquilt.qtypes.mlx_stream import from_stream, to_stream
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register

MXFP4_GROUP = 32
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
EXPONENT_BIAS = 127


class MxFp4(ScalarQuantType):
    """The type that mlx calls mode ``mxfp4``."""

    name = "mxfp4"
    targets = frozenset({"mlx"})
    block = MXFP4_GROUP
    block_bits = 4 * MXFP4_GROUP + 8
    low, high = 0, 15
    table = MAGNITUDES + tuple(-magnitude for magnitude in MAGNITUDES)

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``exponents`` int32 [R, N] in -127 … 127."""
        exponents = packed["scales"].int() - EXPONENT_BIAS
        return {"codes": from_stream(packed["weight"], 4), "exponents": exponents}

    def pack(self, fields: Unpacked) -> Packed:
        scales = (fields["exponents"] + EXPONENT_BIAS).to(torch.uint8)
        return {"weight": to_stream(fields["codes"], 4), "scales": scales}

    def levels(self, fields: Unpacked) -> LevelMap:
        exponents = fields["exponents"]
        return LevelMap(torch.ldexp(torch.ones_like(exponents).float(), exponents), None)


register(MxFp4())
