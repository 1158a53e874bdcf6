"""MLX's affine types: groups of 32, 64 or 128 weights on even levels scale · code + bias.

    weight    uint32 [R, C bits / 32]   the codes of a row as one little-endian stream of bits
    scales    bfloat16 [R, C / group]
    biases    bfloat16 [R, C / group]

Letters: R rows, C columns, N = C / group groups along a row, g weights in a group.
Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp (quantize, extract_bits). mx.quantize keeps
scales in the dtype of its input; bitquilt always gives it bfloat16, as published models do.
"""

from __future__ import annotations

from bitquilt.qtypes.qtype import LevelMap, Packed, ScalarQuantType, Unpacked, register
from bitquilt.runtime.bit_stream import from_stream, to_stream

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)


class Affine(ScalarQuantType):
    """An affine type of one width in bits and one group size."""

    targets = frozenset({"mlx"})

    def __init__(self, bits: int, group: int) -> None:
        self.name = f"{bits}bit-g{group}"
        self.width = bits
        self.low, self.high = 0, (1 << bits) - 1
        self.block = group
        self.block_bits = bits * group + 2 * 16

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` uint8 [R, C] in 0 … 2^bits - 1, ``scales`` and ``biases`` bfloat16
        [R, N].
        """
        codes = from_stream(packed["weight"], self.width)
        return {"codes": codes, "scales": packed["scales"], "biases": packed["biases"]}

    def pack(self, fields: Unpacked) -> Packed:
        words = to_stream(fields["codes"], self.width)
        return {"weight": words, "scales": fields["scales"], "biases": fields["biases"]}

    def levels(self, fields: Unpacked) -> LevelMap:
        return LevelMap(fields["scales"].float(), fields["biases"].float())


for bits in AFFINE_BITS:
    for group in AFFINE_GROUPS:
        register(Affine(bits, group))
