"""The types that store plain numbers: BF16 and F32, in GGUF and MLX files alike.

A matrix is stored as ``{"weight": [R, C]}`` in its own dtype: MLX takes the tensor as it is, GGUF
its bytes (``weight.view(torch.uint8)``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import Packed, QuantType, Unpacked, register


class Float(QuantType):
    """A type with one number for each weight, rounded to the nearest, ties to even."""

    targets = frozenset({"gguf", "mlx"})
    block = 1

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype
        self.block_bits = 8 * dtype.itemsize

    def unpack(self, packed: Packed) -> Unpacked:
        """Return ``codes`` [R, C]: the numbers themselves, in the dtype they are stored in."""
        return {"codes": packed["weight"]}

    def pack(self, fields: Unpacked) -> Packed:
        return {"weight": fields["codes"]}

    def decode(self, fields: Unpacked) -> Tensor:
        return fields["codes"].float()


for qtype in (Float("BF16", torch.bfloat16), Float("F32", torch.float32)):
    register(qtype)
