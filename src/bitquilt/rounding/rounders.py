"""Rounding eight columns of many rows at once, onto levels whose scales are fixed.

Error feedback and coordinate descent ask the same question of every grid: which codes come closest
to these targets, in the metric of the Hessian? Codes travel as int16 [K, N] per group of columns,
whatever a grid makes of them.

Letters: N rows (of one or several matrices and grids), C columns, G = C / 8 groups of columns,
K numbers that code one group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bitquilt.grids.grid import Fields, Grid, ScalarGrid
from bitquilt.grids.iquants import Codebook, codebook
from bitquilt.rounding.codebooks import nearest_patterns
from bitquilt.rounding.factor import GROUP
from bitquilt.rounding.tables import Table

CELLS = 4
"""Of the lookup, per unit: the middles between uneven levels are whole quarters at the finest."""


class Rounder(ABC):
    """The levels of N rows."""

    width: int
    """K."""

    @abstractmethod
    def propose(self, group: int, target: Tensor, triangle: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int16 [K, N] and levels float32 [8, N] near targets [8, N].

        Near means ‖Tᵀ (target − level)‖² small, T [8, 8] the upper triangular ``triangle``.

        Args:
            group: which eight columns of the matrix, in its own order.
            target: float32 [8, N].
            triangle: float32 [8, 8].
        """

    @staticmethod
    @abstractmethod
    def fields(grid: Grid, codes: Tensor) -> Fields:
        """The code fields of rows of one grid from codes [G, K, R], groups in their own order."""


class LevelRounder(Rounder):
    """Grids that code every weight by itself: each column makes up for those before it."""

    width = GROUP

    def __init__(self, grids: Sequence[ScalarGrid], fields: Sequence[Fields], columns: int) -> None:
        """Take rows of several grids, all with a table of values or all without.

        Args:
            grids: one per entry of ``fields``; the same table where they have one.
            fields: scales of some rows each; codes are ignored.
            columns: C.
        """
        lines = [grid.levels(each) for grid, each in zip(grids, fields, strict=True)]
        counts = [len(line.steps) for line in lines]
        device = lines[0].steps.device
        self._steps = torch.cat([_by_group(line.steps, columns) for line in lines], 1)
        self._inverse = torch.where(self._steps == 0, 0.0, 1 / self._steps)
        offsets = [torch.zeros_like(n.steps) if n.offsets is None else n.offsets for n in lines]
        self._offsets = torch.cat([_by_group(offset, columns) for offset in offsets], 1)
        self._low = _repeated([grid.low for grid in grids], counts, device)
        self._high = _repeated([grid.high for grid in grids], counts, device)
        table = grids[0].table
        self._table = None if table is None else Table(table, CELLS)
        self._values = (
            None if table is None else grids[0].values(torch.arange(len(table), device=device))
        )

    def propose(self, group: int, target: Tensor, triangle: Tensor) -> tuple[Tensor, Tensor]:
        codes, levels = torch.empty_like(target), torch.empty_like(target)
        shifted = target.clone()
        unit = triangle / triangle.diagonal()
        step, inverse, offset = self._steps[group], self._inverse[group], self._offsets[group]
        rows = zip(*(each.unbind() for each in (target, shifted, codes, levels)), strict=True)
        for j, (wanted, reached, code, level) in enumerate(rows):
            code.copy_(self._nearest((reached - offset).mul_(inverse)))
            torch.addcmul(offset, self._value(code), step, out=level)
            if j + 1 < GROUP:
                shifted[j + 1 :].addr_(unit[j, j + 1 :], wanted - level)
        return codes.to(torch.int16), levels

    @staticmethod
    def fields(grid: Grid, codes: Tensor) -> Fields:
        assert isinstance(grid, ScalarGrid)
        dtype = torch.int8 if grid.low < 0 else torch.uint8
        # [G, 8, R] -> [C, R] -> [R, C]
        return {"codes": codes.flatten(0, 1).T.to(dtype).contiguous()}

    def _nearest(self, scaled: Tensor) -> Tensor:
        if self._table is None:
            return scaled.round_().clamp_(self._low, self._high)
        return self._table.codes(scaled).float()

    def _value(self, codes: Tensor) -> Tensor:
        return codes if self._values is None else self._values.index_select(0, codes.int())


class PatternRounder(Rounder):
    """An i-quant with a codebook: the eight columns of a group are one vector."""

    def __init__(self, grid: Codebook, fields: Sequence[Fields], columns: int) -> None:
        """Take rows of one grid, in any number of parts; codes and signs are ignored."""
        self._grid = grid
        self._steps = torch.cat([_by_group(grid.steps(each), columns) for each in fields], 1)
        self.width = GROUP // codebook(grid.name).shape[1] + 1

    def propose(self, group: int, target: Tensor, triangle: Tensor) -> tuple[Tensor, Tensor]:
        codes, signs, levels = nearest_patterns(self._grid, target, self._steps[group], triangle)
        return torch.cat([codes, signs.to(codes.dtype).unsqueeze(0)]), levels

    @staticmethod
    def fields(grid: Grid, codes: Tensor) -> Fields:
        patterns, signs = codes[:, :-1], codes[:, -1]
        # [G, H, R] -> [G H, R] -> [R, G H]
        return {
            "codes": patterns.flatten(0, 1).T.contiguous(),
            "signs": signs.T.to(torch.uint8).contiguous(),
        }


def _by_group(field: Tensor, columns: int) -> Tensor:
    """[R, n] steps of C / n columns each → one per group of columns, [G, R]."""
    return field.T.repeat_interleave(columns // GROUP // field.shape[1], 0)


def _repeated(numbers: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Each number as often as its count says, float32 [N]."""
    each = torch.tensor(numbers, dtype=torch.float32, device=device)
    return each.repeat_interleave(torch.tensor(counts, device=device))
