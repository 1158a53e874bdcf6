"""Which matrix of a base is which parameter of the Hugging Face model: their numbers say it.

A converter may rename, split, join, stack, transpose and permute. Every row of a matrix is hashed,
at the precision that the base stores, and looked up among the rows of all parameters, as they are
and transposed. What is found is compared number by number. Where only the order of columns differs,
a hash that does not depend on it finds the row, and the columns' own hashes their order.

Letters: E experts of a stack (1 for a plain matrix), R rows, C columns, N rows of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bitquilt.bases.deferred_stacks import matrix_of
from bitquilt.runtime.device import compute_device
from bitquilt.runtime.malloc import trim

HASHED_AT_ONCE = 1 << 22
"""Numbers that are hashed at once: 32 MB of them."""
_SEED = 0x5EED
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_MIX = (-7046029254386353131, -4658895280553007687)
"""SplitMix64's increment and its first multiplier, as signed numbers (Steele et al. 2014)."""


@dataclass(frozen=True)
class Unit:
    """A matrix among the parameters: one of a stack, as it is or transposed."""

    parameter: str
    index: int
    """Which matrix of the stack; 0 for a plain one."""
    transposed: bool


@dataclass(frozen=True, eq=False)
class PartnerPiece:
    """Rows of a base's matrix, and the rows that they are equal to."""

    unit: Unit
    rows: Tensor
    """Which rows of the base's matrix, int64 [N], ascending."""
    source_rows: Tensor
    """Which rows of the unit these are, int64 [N]."""
    columns: Tensor | None = None
    """Which column of the unit each of the base's columns is, int64 [C]; None: the same one."""


@dataclass(frozen=True)
class Partner:
    """Where a base's matrix comes from: the pieces of every expert, the largest first."""

    experts: tuple[tuple[PartnerPiece, ...], ...]
    partial: bool = False
    """Whether the parameters' matrices have rows that are not in this one."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that the numbers are from."""
        pieces = (piece for expert in self.experts for piece in expert)
        return tuple(dict.fromkeys(piece.unit.parameter for piece in pieces))

    @property
    def relation(self) -> str:
        """How the matrix differs from its parameters, in words; ``equal`` where it does not."""
        pieces = [piece for expert in self.experts for piece in expert]
        told = []
        if len(self.experts) > 1:
            told.append(f"a stack of {len(self.experts)}")
        if any(len(expert) > 1 for expert in self.experts):
            told.append(f"a join of {max(map(len, self.experts))}")
        if any(piece.unit.transposed for piece in pieces):
            told.append("transposed")
        if any(not _ascending_by_one(piece.source_rows) for piece in pieces):
            told.append("other rows or another order of them")
        elif self.partial:
            told.append("a slice")
        if any(piece.columns is not None for piece in pieces):
            told.append("another order of columns")
        return ", ".join(told) or "equal"


def find_partners(
    base: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Partner | None]:
    """Find where the numbers of a base's matrices come from.

    Rows of zeros are equal to any. Parameters that are equal to each other are taken in their
    order, each once before any is taken again.

    Args:
        base: name → matrix [R, C] or stack [E, R, C], float32, float16 or bfloat16; each is asked
            for once or twice, so that a mapping may read a file.
        parameters: name → tensor of floats; those of fewer than two dimensions are passed over.
            They are rounded to the base's dtype, as a converter does.

    Returns:
        name → its partner; None where some row is found nowhere.
    """
    indices: dict[torch.dtype, _Index] = {}
    used: set[Unit] = set()
    found: dict[str, Partner | None] = {}
    for name in base:
        trim()  # pieces, which stay, lie between the large blocks of hashing, which went
        stack = base[name]
        index = indices.setdefault(stack.dtype, _Index(parameters, stack.dtype))
        experts, partial = [], False
        for matrix in stack.reshape(-1, *stack.shape[-2:]):
            pieces = _pieces(matrix.to(compute_device()), index, used)
            if pieces is None:
                break
            used |= {piece.unit for piece in pieces}
            experts.append(pieces)
            partial |= sum(index.height(piece.unit) for piece in pieces) > len(matrix)
        else:
            found[name] = Partner(tuple(experts), partial)
            continue
        found[name] = None
    return found


def _pieces(matrix: Tensor, index: _Index, used: set[Unit]) -> tuple[PartnerPiece, ...] | None:
    """The pieces of a matrix [R, C], verified; None where a row that is not zero has no equal."""
    wanted = torch.nonzero((matrix != 0).any(1))[:, 0].cpu()
    pieces = _greedily(matrix, wanted, index.rows, used)
    if pieces is None:
        pieces = _greedily(matrix, wanted, index.unordered_rows, used)
        if pieces is not None:
            pieces = [_with_columns(matrix, piece, index) for piece in pieces]
    if pieces is None or not all(index.equal(matrix, piece) for piece in pieces):
        return None
    return tuple(pieces)


def _greedily(
    matrix: Tensor, wanted: Tensor, table: _Table, used: set[Unit]
) -> list[PartnerPiece] | None:
    """Cover the wanted rows by units, each time by the one with the most of them."""
    keys = table.keys_of(matrix[wanted])
    rows, entries = table.find(keys)  # every hit: row among the wanted, and entry of the table
    pieces = []
    while len(wanted):
        if not len(rows):
            return None
        numbers, votes = table.unit[entries].unique(return_counts=True)
        best = numbers[votes == votes.max()].tolist()
        number = next((n for n in best if table.units[n] not in used), best[0])
        own = table.unit[entries] == number
        covered, first = rows[own], entries[own]
        pieces.append(PartnerPiece(table.units[number], wanted[covered], table.row[first]))
        left = torch.ones(len(keys), dtype=torch.bool)
        left[covered] = False
        keep = left[rows]
        rows, entries = rows[keep], entries[keep]
        remaining = len(keys) - sum(len(piece.rows) for piece in pieces)
        if not remaining:
            break
    return pieces


def _with_columns(matrix: Tensor, piece: PartnerPiece, index: _Index) -> PartnerPiece:
    """The piece with the order of columns that makes its rows equal, if there is one."""
    ours = _hashes(_bits(matrix[piece.rows]).T)
    theirs = _hashes(_bits(index.matrix(piece.unit)[piece.source_rows]).T)
    our_order, their_order = ours.argsort(), theirs.argsort()
    columns = torch.empty_like(our_order)
    columns[our_order] = their_order
    return PartnerPiece(piece.unit, piece.rows, piece.source_rows, columns)


@dataclass(frozen=True)
class _Table:
    """The hashes of all rows of all units, sorted; within a unit, equal rows are there once."""

    units: list[Unit]
    key: Tensor
    unit: Tensor
    row: Tensor
    ordered: bool
    """Whether the hashes depend on the order of columns."""

    def keys_of(self, rows: Tensor) -> Tensor:
        return _hashes(_bits(rows), self.ordered)

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """All entries with these keys: (position in keys, entry), both int64 [hits]."""
        low = torch.searchsorted(self.key, keys)
        count = torch.searchsorted(self.key, keys, right=True) - low
        rows = torch.repeat_interleave(torch.arange(len(keys)), count)
        before = torch.cumsum(count, 0) - count
        return rows, torch.arange(len(rows)) - before[rows] + low[rows]


class _Index:
    """All matrices among the parameters, at the precision of a base's dtype."""

    def __init__(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._parameters, self._dtype = parameters, dtype

    def matrix(self, unit: Unit) -> Tensor:
        """A unit's numbers [R, C], rounded as the base's are, on the device."""
        matrix = matrix_of(self._parameters[unit.parameter], unit.index)
        matrix = matrix.to(compute_device()).to(self._dtype)
        return matrix.T if unit.transposed else matrix

    def height(self, unit: Unit) -> int:
        """How many rows a unit has."""
        return self._parameters[unit.parameter].shape[-1 if unit.transposed else -2]

    def equal(self, matrix: Tensor, piece: PartnerPiece) -> bool:
        """Whether the rows of a piece are equal, bit by bit."""
        rows = self.matrix(piece.unit)[piece.source_rows]
        if rows.shape[1] != matrix.shape[1]:
            return False
        ordered = rows if piece.columns is None else rows[:, piece.columns]
        return torch.equal(_bits(matrix[piece.rows]), _bits(ordered))

    @cached_property
    def rows(self) -> _Table:
        """Rows by hashes of their numbers in order."""
        return self._table(ordered=True)

    @cached_property
    def unordered_rows(self) -> _Table:
        """Rows by hashes of their numbers in any order."""
        return self._table(ordered=False)

    def _units(self) -> Iterator[Unit]:
        for name, tensor in self._parameters.items():
            if tensor.ndim < 2 or min(tensor.shape[-2:]) < 2 or not tensor.is_floating_point():
                continue
            for index in range(tensor.numel() // (tensor.shape[-1] * tensor.shape[-2])):
                yield Unit(name, index, transposed=False)
                yield Unit(name, index, transposed=True)

    def _table(self, ordered: bool) -> _Table:
        units = list(self._units())
        # in one piece: small tensors that stay between large ones that go would scatter the heap
        key, row, number = torch.empty(3, sum(map(self.height, units)), dtype=torch.int64)
        end = 0
        for place, unit in enumerate(units):
            own = _hashes(_bits(self.matrix(unit)), ordered)
            order = own.argsort(stable=True)
            first = torch.ones(len(own), dtype=torch.bool)
            first[1:] = own[order][1:] != own[order][:-1]
            start, end = end, end + int(first.sum())
            key[start:end], row[start:end], number[start:end] = (
                own[order][first],
                order[first],
                place,
            )
        key, order = key[:end].sort(stable=True)
        return _Table(units, key, number[order], row[order], ordered)


def _bits(matrix: Tensor) -> Tensor:
    """The bits of floats as integers of their width; a transposed matrix stays one."""
    if matrix.stride(-1) == 1 or 1 in matrix.shape:
        return matrix.contiguous().view(_BITS[matrix.dtype])
    return matrix.T.contiguous().view(_BITS[matrix.dtype]).T


def _hashes(bits: Tensor, ordered: bool = True) -> Tensor:
    """A hash of each row of integers [R, C], int64 [R], which wrap around; C goes into it."""
    height, width = bits.shape
    generator = torch.Generator().manual_seed(_SEED)
    weights = torch.randint(-(2**62), 2**62, (width,), generator=generator) * 2 + 1
    weights = weights.to(bits.device)
    found = torch.empty(height, dtype=torch.int64, device=bits.device)
    step = max(1, HASHED_AT_ONCE // max(1, width))
    for start in range(0, height, step):
        numbers = _mixed(bits[start : start + step].to(torch.int64) + width)
        found[start : start + step] = (numbers * weights if ordered else numbers).sum(1)
    return found.cpu()


def _mixed(numbers: Tensor) -> Tensor:
    """Numbers that tell nothing of each other's sums, as SplitMix64 makes them."""
    numbers = (numbers * _MIX[0]).bitwise_xor_((numbers * _MIX[0]) >> 30)
    numbers *= _MIX[1]
    return numbers.bitwise_xor_(numbers >> 27)


def _ascending_by_one(rows: Tensor) -> bool:
    return bool((rows[1:] - rows[:-1] == 1).all())
