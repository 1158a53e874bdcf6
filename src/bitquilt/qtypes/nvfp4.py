"""NVFP4, 16 four-bit floats under an eight-bit one: MLX stores ``nvfp4``, ggml ``NVFP4``.

    scale     6 5 4 3    2 1 0         2^(exponent - 7) · (1 + mantissa / 8), e4m3
              exponent   mantissa      2^-9 · mantissa where the exponent is 0

Codes are those of MXFP4. ggml has no number for a whole tensor beside them here, so scales are at
most 448, and below 2^-6 they are multiples of 2^-9.

Letters: R rows, C columns, N = C / 16 groups along a row.
Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp (mode nvfp4); ggml-org/llama.cpp,
ggml/src/ggml-common.h (block_nvfp4), ggml-quants.c (ggml_ue4m3_to_fp32).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.ggml import GgmlQuantType, blocks_of
from bitquilt.qtypes.mxfp4 import FourBitFloats
from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register
from bitquilt.runtime.bit_stream import from_stream, to_stream

NVFP4_GROUP = 16


def _e4m3(code: int) -> float:
    """Decode the seven lower bits of a scale."""
    exponent, mantissa = code >> 3, code & 7
    return mantissa / 512 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


_MAGNITUDES = tuple(_e4m3(code) for code in range(127))
SCALE_CODES = len(_MAGNITUDES)
"""Codes of a scale from 0 on, ascending, that both engines read alike."""


class BlockScaled(ScalarQuantType):
    """The numbers of NVFP4, whoever stores them; the engines differ in codes that none writes."""

    low, high = 0, 15
    table = FourBitFloats.table
    scales: ClassVar[tuple[float, ...]]
    """What each of the 256 codes of a scale stands for."""

    def scale(self, codes: Tensor) -> Tensor:
        """Return what codes of scales stand for, float32 of their shape."""
        return torch.tensor(self.scales, device=codes.device)[codes.int()]

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(self.scale(fields["scale_codes"]), None)


class MlxNvFp4(BlockScaled):
    """The type that mlx calls mode ``nvfp4``.

    weight    uint32 [R, C / 8]    eight codes a word, the first lowest
    scales    uint8  [R, N]        their codes, of which the highest bit is a sign
    """

    name = "nvfp4"
    targets = frozenset({"mlx"})
    block = NVFP4_GROUP
    block_bits = 4 * NVFP4_GROUP + 8
    scales = (
        *(*_MAGNITUDES, float("nan")),
        *(*(-magnitude for magnitude in _MAGNITUDES), float("nan")),
    )

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``scale_codes`` uint8 [R, N]."""
        return {"codes": from_stream(packed["weight"], 4), "scale_codes": packed["scales"]}

    def pack(self, fields: Unpacked) -> Packed:
        return {"weight": to_stream(fields["codes"], 4), "scales": fields["scale_codes"]}


class GgmlNvFp4(GgmlQuantType, BlockScaled):
    """4.5 bits: d(4) qs(32), four groups of 16, of each the lower nibbles first."""

    name = "NVFP4"
    block = 4 * NVFP4_GROUP
    sections: ClassVar = {"d": 4, "qs": 32}
    half_sections = ()
    scales = (*_MAGNITUDES, 0.0, *_MAGNITUDES, _e4m3(127))

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 15, ``scale_codes`` uint8 [R, N]."""
        s = self.split(packed)
        # [R, B, 32] -> [R, B, 4, 8]
        halves = torch.unflatten(s["qs"], -1, (4, -1))
        codes = torch.cat([halves & 15, halves >> 4], dim=-1)
        return {"codes": codes.flatten(1), "scale_codes": s["d"].flatten(1)}

    def pack(self, fields: Unpacked) -> Packed:
        # [R, C] -> [R, B, 4, 16]
        codes = torch.unflatten(blocks_of(fields["codes"], self.block), -1, (4, -1))
        low, high = codes.chunk(2, dim=-1)
        return self.join(d=blocks_of(fields["scale_codes"], 4), qs=(low | high << 4).flatten(-2))


for qtype in (MlxNvFp4(), GgmlNvFp4()):
    register(qtype)
