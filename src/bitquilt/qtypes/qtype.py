"""What a quantization type is: the storage format of one matrix, and its exact cost in bits.

Letters: R rows (outputs), C columns (inputs), B blocks along a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.qtypes.rows import by_rows

Packed = dict[str, Tensor]
"""A matrix as a file stores it. GGUF types have ``data`` (uint8 [R, row_bytes]). MLX types have
``weight`` (uint32 words [R, C * bits / 32]), ``scales`` and ``biases`` ([R, C / group]), as mlx
names them. The floats BF16 and F32, which both files hold, have ``weight`` [R, C] in that dtype.
Rows are independent in every type: permuting those of a matrix permutes those of its parts."""

Allocation = Mapping[str, str]
"""Module path of every matrix → type name: which type each matrix of one model has."""

PackedSource = Callable[[str, str], Packed]
"""(module path, type name) → the matrix as stored; asked for one matrix at a time."""

Unpacked = dict[str, Tensor]
"""A packed matrix as numbers: ``codes`` [R, C] (or [R, C / n] where one code stands
for n weights) and the scales of each block. Each type's ``unpack`` says which, with shapes."""


class QuantType(ABC):
    """One storage format. Instances are immutable, and registered by name."""

    name: str
    """The name that recipes use, such as ``Q4_K`` or ``4bit-g64``."""
    targets: frozenset[str]
    """The file formats that can hold it: ``gguf``, ``mlx``."""
    block: int
    """Weights in a block along a row; the row length must be a multiple of it."""
    block_bits: int
    """Bits that one block occupies in the file, scales included."""

    @property
    def bits(self) -> float:
        """The exact bits per weight, scales included."""
        return self.block_bits / self.block

    def fits(self, columns: int) -> bool:
        """Tell whether a row of that length can be stored as this type."""
        return columns % self.block == 0

    def nbytes(self, rows: int, columns: int) -> int:
        """Return the exact bytes of a matrix in the file, without alignment.

        Raises:
            UserError: the row is not a whole number of blocks.
        """
        self.check_fits(columns)
        return rows * (columns // self.block) * self.block_bits // 8

    def check_fits(self, columns: int) -> None:
        """Refuse a row length that the type cannot store.

        Raises:
            UserError: the row is not a whole number of blocks.
        """
        if not self.fits(columns):
            raise UserError(
                f"{self.name} stores rows in blocks of {self.block} and cannot take a row of "
                f"{columns}; choose a type whose block divides {columns}"
            )

    @abstractmethod
    def unpack(self, packed: Packed) -> Unpacked:
        """Take stored bytes apart into numbers; nothing is lost."""

    @abstractmethod
    def pack(self, fields: Unpacked) -> Packed:
        """Put numbers together into stored bytes: the exact inverse of :meth:`unpack`."""

    @abstractmethod
    def decode(self, fields: Unpacked) -> Tensor:
        """Return the float32 [R, C] matrix that the numbers stand for, on their device."""

    def dequantize(self, packed: Packed) -> Tensor:
        """Return the float32 [R, C] matrix that the engine computes with."""
        row_bytes = sum(part[0].nbytes for part in packed.values())
        columns = 8 * row_bytes // self.block_bits * self.block

        def decode_rows(into: Tensor, *parts: Tensor) -> None:
            into.copy_(self.decode(self.unpack(dict(zip(packed, parts, strict=True)))))

        first = next(iter(packed.values()))
        with torch.inference_mode(False):  # threads write into it that are outside of that mode
            matrix = torch.empty(len(first), columns, device=first.device)
        by_rows(decode_rows, columns, matrix, *packed.values())
        return matrix


@dataclass(frozen=True)
class LevelMap:
    """Where the weights of a matrix may go once its scales are fixed: step · value + offset.

    Each of the n steps of a row serves C / n neighbouring columns.
    """

    steps: Tensor
    """float32 [R, n]."""
    offsets: Tensor | None
    """float32 [R, n]; None is zero."""

    def of(self, values: Tensor) -> Tensor:
        """Map values [R, C] to levels [R, C]."""
        # [R, C] -> [R, n, C / n]
        spread = torch.unflatten(values, 1, (self.steps.shape[1], -1)) * self.steps.unsqueeze(-1)
        return (spread if self.offsets is None else spread + self.offsets.unsqueeze(-1)).flatten(1)


class ScalarQuantType(QuantType):
    """A type with one code for each weight and one line of levels for each block."""

    low: int
    """The smallest code."""
    high: int
    """The largest code."""
    table: tuple[float, ...] | None = None
    """What code ``low + i`` stands for, NaN if nothing; None where codes stand for themselves."""
    cells: int = 4
    """Midpoints between neighbours in the table are whole multiples of 1 / ``cells``."""

    @abstractmethod
    def levels(self, fields: Unpacked) -> LevelMap:
        """Return the line of levels of each block, from the scales alone."""

    def values(self, codes: Tensor) -> Tensor:
        """Return what codes stand for before scaling, float32 of their shape."""
        if self.table is None:
            return codes.float()
        table = torch.tensor(self.table, dtype=torch.float32, device=codes.device)
        return table[codes.int() - self.low]

    def decode(self, fields: Unpacked) -> Tensor:
        return self.levels(fields).of(self.values(fields["codes"]))


_REGISTRY: dict[str, QuantType] = {}


def register(qtype: QuantType) -> QuantType:
    """Add a type to those that can be looked up; its module does so at import.

    Raises:
        ValueError: another type has the name.
    """
    if qtype.name in _REGISTRY:
        raise ValueError(f"type {qtype.name} registered twice")
    _REGISTRY[qtype.name] = qtype
    return qtype


def registered() -> dict[str, QuantType]:
    """Return every type by name, in the order of registration."""
    return dict(_REGISTRY)
