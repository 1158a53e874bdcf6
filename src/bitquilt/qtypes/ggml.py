"""What all formats of ggml share: a row is a sequence of blocks of one size.

Letters: R rows, C columns, B blocks along a row.
Source of every layout: ggml-org/llama.cpp, ggml/src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import Packed, QuantType

SMALL_BLOCK = 32
"""Weights in a block of the formats for rows of any multiple of 32 (ggml's QK4_0, QK8_0 …)."""
SUPER_BLOCK = 256
"""Weights in a block of the K-quants and i-quants (ggml's QK_K)."""


class GgmlQuantType(QuantType):
    """A ggml block format: its sections say what a block holds, and so what it costs."""

    targets = frozenset({"gguf"})
    sections: ClassVar[dict[str, int]]
    """The parts of one block in file order: name → bytes."""
    half_sections: ClassVar[tuple[str, ...]] = ("d",)
    """The sections that hold half-precision scales."""

    def __init__(self) -> None:
        self.block_bits = 8 * sum(self.sections.values())

    def split(self, packed: Packed) -> dict[str, Tensor]:
        """Cut rows of bytes into sections of blocks, uint8 [R, B, bytes of the section]."""
        # [R, row_bytes] -> [R, B, bytes of a block]
        blocks = torch.unflatten(packed["data"], 1, (-1, self.block_bits // 8))
        parts = blocks.split_with_sizes(list(self.sections.values()), dim=-1)
        return dict(zip(self.sections, parts, strict=True))

    def join(self, **sections: Tensor) -> Packed:
        """Undo :meth:`split`."""
        return {"data": torch.cat([sections[name] for name in self.sections], dim=-1).flatten(1)}


def blocks_of(field: Tensor, size: int) -> Tensor:
    """Group a field [R, B size] by block: [R, B, size]."""
    return torch.unflatten(field, 1, (-1, size))


def times(numbers: Tensor, scales: Tensor) -> Tensor:
    """Multiply numbers [R, n] of sub-blocks by the scales [R, B] of their super-blocks, float32."""
    # [R, n] -> [R, B, n / B]
    by_block = torch.unflatten(numbers.float(), 1, (scales.shape[1], -1))
    return (by_block * scales.unsqueeze(-1)).flatten(1)
