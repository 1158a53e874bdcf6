"""Uneven levels: the nearest one is found by one lookup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import ScalarQuantType


@dataclass(frozen=True)
class LevelTable:
    """Uneven levels, whose midpoints are multiples of 1 / ``cells``.

    The line from the lowest value to the highest is cut into cells of that width; all numbers in
    one cell have the same nearest level.
    """

    values: tuple[float, ...]
    cells: int

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return min(self._numbers)

    @property
    def highest(self) -> float:
        """The largest value."""
        return max(self._numbers)

    @property
    def _numbers(self) -> list[float]:
        return [value for value in self.values if not math.isnan(value)]

    def contents(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each cell's nearest value, float32, and its code, uint8, the lowest cell first."""
        return _cells(self, device)

    def levels(self, numbers: Tensor) -> Tensor:
        """Return the nearest values; ``numbers`` is overwritten."""
        return self._lookup(self.contents(numbers.device)[0], numbers)

    def codes(self, numbers: Tensor) -> Tensor:
        """Return the codes of the nearest values, uint8; ``numbers`` is overwritten."""
        return self._lookup(self.contents(numbers.device)[1], numbers)

    def _lookup(self, contents: Tensor, numbers: Tensor) -> Tensor:
        # a scale beyond half precision makes numbers of no value: any level will do, it is refused
        places = numbers.sub_(self.lowest).mul_(self.cells).nan_to_num_(0.0)
        cell = places.clamp_(0, len(contents) - 1).int()
        return contents.index_select(0, cell.flatten()).view(numbers.shape)


def level_table(qtype: ScalarQuantType) -> LevelTable | None:
    """Return the uneven levels of a type; None where its levels are even."""
    return None if qtype.table is None else LevelTable(qtype.table, qtype.cells)


@cache
def _cells(table: LevelTable, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.tensor(table.values, dtype=torch.float32, device=device)
    count = round((table.highest - table.lowest) * table.cells)
    middles = table.lowest + (torch.arange(count, device=device) + 0.5) / table.cells
    ordered, codes = values.sort(stable=True)
    # of equal values the first is taken, and what is no number, which is sorted last, never
    first = ordered.diff(prepend=ordered.new_tensor([-math.inf])) > 0
    ordered, codes = ordered[first], codes[first]
    codes = codes[torch.searchsorted((ordered[:-1] + ordered[1:]) / 2, middles)]
    return values[codes], codes.to(torch.uint8)
