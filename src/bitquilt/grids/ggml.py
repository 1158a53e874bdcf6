"""What all ggml formats share: rows of fixed-size blocks, rounded by ggml's own code.

Letters: R rows, C columns, B blocks along a row.
Source of every layout: ggml-org/llama.cpp, ggml/src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from threading import Lock
from typing import ClassVar

import libgguf
import numpy as np
import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.grids.bits import halves
from bitquilt.grids.grid import Grid, Packed
from bitquilt.grids.rows import by_rows

LARGEST = 65504.0 * 128 * 32
"""No ggml format reaches further: a half-precision scale times Q6_K's scale and code."""


class GgmlGrid(Grid):
    """A ggml block format: its sections say what a block holds, and so what it costs."""

    targets = frozenset({"gguf"})
    sections: ClassVar[dict[str, int]]
    """The parts of one block in file order: name → bytes."""
    half_sections: ClassVar[tuple[str, ...]] = ("d",)
    """Those that hold half-precision scales."""

    def __init__(self) -> None:
        self.block_bits = 8 * sum(self.sections.values())

    def round_nearest(self, weight: Tensor, importance: Tensor | None) -> Packed:
        """Round as ggml does, byte for byte; the result is on the CPU.

        The formats that ggml refuses to make without an importance matrix (IQ2_XXS, IQ2_XS, …)
        take one of ones when there is none.
        """
        self.check_fits(weight.shape[1])
        kind = libgguf.GGMLQuantizationType[self.name]
        _build_tables(kind)
        if importance is None and libgguf.quantize_requires_imatrix(kind):
            importance = torch.ones(weight.shape[1])
        matrix = None if importance is None else importance.float().cpu().numpy()

        def round_rows(rows: Tensor) -> Tensor:
            return torch.from_numpy(libgguf.quantize_rows(rows.numpy(), kind, imatrix=matrix))

        # ggml rounds each row by itself, and libgguf lets go of the interpreter lock.
        rows = weight.float().cpu().contiguous()
        packed = {"data": torch.cat(by_rows(round_rows, rows.shape[1], rows))}
        self._check_range(packed, weight)
        return packed

    def split(self, packed: Packed) -> dict[str, Tensor]:
        """Rows of bytes to the sections of their blocks, uint8 [R, B, bytes of the section]."""
        # [R, row_bytes] -> [R, B, bytes of a block]
        blocks = torch.unflatten(packed["data"], 1, (-1, self.block_bits // 8))
        parts = blocks.split_with_sizes(list(self.sections.values()), dim=-1)
        return dict(zip(self.sections, parts, strict=True))

    def join(self, **sections: Tensor) -> Packed:
        """The inverse of :meth:`split`."""
        return {"data": torch.cat([sections[name] for name in self.sections], dim=-1).flatten(1)}

    def _check_range(self, packed: Packed, weight: Tensor) -> None:
        """Refuse what ggml would store as infinite, or as zero where its squares overflow."""
        sections = self.split(packed)
        largest = torch.linalg.vector_norm(weight, ord=torch.inf).item()
        finite = all(bool(halves(sections[n]).isfinite().all()) for n in self.half_sections)
        if not finite or not largest <= LARGEST:
            raise UserError(
                f"{self.name} keeps its scales in half precision and cannot hold a weight as large "
                f"as {largest:.3g}; put this matrix on BF16"
            )


_table_lock = Lock()


def _build_tables(kind: libgguf.GGMLQuantizationType) -> None:
    """Have ggml build the search tables of the i-quants, in one thread: its own lock is not there.

    ggml does this on first use and crashes where two threads come first together. One block is the
    cheapest first use; further ones cost microseconds.
    """
    columns = libgguf.GGML_QUANT_SIZES[kind][0]
    with _table_lock:
        libgguf.quantize_rows(np.zeros((1, columns), np.float32), kind)


def blocks_of(field: Tensor, size: int) -> Tensor:
    """A field [R, B size] block by block: [R, B, size]."""
    return torch.unflatten(field, 1, (-1, size))


def times(numbers: Tensor, scales: Tensor) -> Tensor:
    """Numbers [R, n] of sub-blocks times the scales [R, B] of their super-blocks, float32."""
    # [R, n] -> [R, B, n / B]
    by_block = torch.unflatten(numbers.float(), 1, (scales.shape[1], -1))
    return (by_block * scales.unsqueeze(-1)).flatten(1)
