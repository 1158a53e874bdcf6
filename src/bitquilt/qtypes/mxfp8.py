"""MXFP8, 32 eight-bit floats under one power of two, as MLX stores them.

    code      7      6 5 4 3    2 1 0       2^(exponent - 7) · (1 + mantissa / 8), e4m3
              sign   exponent   mantissa    2^-9 · mantissa where the exponent is 0

Letters: R rows, C columns, N = C / 32 groups along a row.
Source: OCP Microscaling Formats 1.0; ml-explore/mlx, mlx/backend/cpu/quantized.cpp (mode mxfp8).
"""

from __future__ import annotations

import torch

from bitquilt.qtypes.mxfp4 import EXPONENT_BIAS, MXFP4_GROUP, Microscaled
from bitquilt.qtypes.qtype import Packed, Unpacked, register
from bitquilt.runtime.bit_stream import from_stream, to_stream


class MlxMxFp8(Microscaled):
    """The type that mlx calls mode ``mxfp8``.

    weight    uint32 [R, C / 4]    four codes a word, the first lowest
    scales    uint8  [R, N]        the exponents
    """

    name = "mxfp8"
    targets = frozenset({"mlx"})
    block_bits = 8 * MXFP4_GROUP + 8
    high = 254
    largest = 448.0
    table = tuple(torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist())
    cells = 1024

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C], of which 127 and 255 are no numbers, ``exponents`` int32
        [R, N] in -127 … 128.
        """
        exponents = packed["scales"].int() - EXPONENT_BIAS
        return {"codes": from_stream(packed["weight"], 8), "exponents": exponents}

    def pack(self, fields: Unpacked) -> Packed:
        scales = (fields["exponents"] + EXPONENT_BIAS).to(torch.uint8)
        return {"weight": to_stream(fields["codes"], 8), "scales": scales}


register(MlxMxFp8())
