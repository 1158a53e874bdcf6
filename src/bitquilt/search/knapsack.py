"""The multiple-choice knapsack, exactly: one grid a matrix, least predicted divergence, in bytes.

Matrix sizes share a large common divisor (a row of blocks is never a few bytes), so a dynamic
programme over every reachable total is small, and its one table answers every budget. Which totals
can be reached depends on sizes alone: the size of a mix is known before anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from bitquilt.errors import UserError

MOST_UNITS = 4_000_000
"""Table columns; beyond that sizes are rounded up to a coarser unit."""


@dataclass(frozen=True)
class Choice:
    """One matrix on one grid."""

    grid: str
    nbytes: int
    """In the file, alignment included."""
    divergence: float
    """Predicted, in nats per token."""


Menu = Mapping[str, list[Choice]]
"""Module path → what it may be put on."""


def smallest(menu: Menu) -> int:
    """Bytes of the smallest mix."""
    return sum(min(choice.nbytes for choice in choices) for choices in menu.values())


def largest(menu: Menu) -> int:
    """Bytes of the largest mix."""
    return sum(max(choice.nbytes for choice in choices) for choices in menu.values())


def fullest(menu: Menu, capacity: int) -> int:
    """Bytes of the largest mix that fits in ``capacity``, which must not be below the smallest."""
    unit = _unit(menu)
    within = (1 << (capacity // unit + 1)) - 1
    reached = 1  # bit n is set where some mix of the matrices so far takes n units
    for choices in menu.values():
        sizes = {choice.nbytes // unit for choice in choices}
        reached = reduce(or_, (reached << size for size in sizes)) & within
    return (reached.bit_length() - 1) * unit


def _unit(menu: Menu) -> int:
    """The largest common divisor of all sizes."""
    return math.gcd(*(choice.nbytes for choices in menu.values() for choice in choices))


class Table:
    """Least divergence for every reachable total up to a capacity."""

    def __init__(self, menu: Menu, capacity: int) -> None:
        """Fill the table.

        Args:
            menu: what each matrix may be put on.
            capacity: bytes; no budget asked of the table may exceed it.

        Raises:
            UserError: ``capacity`` is below the smallest mix.
        """
        least = smallest(menu)
        if capacity < least:
            raise UserError(f"no mix fits in {capacity:,} bytes: the smallest has {least:,}")
        self.menu = menu
        divisor = _unit(menu)
        self.unit = divisor * max(1, math.ceil(capacity / divisor / MOST_UNITS))
        columns = capacity // self.unit + 1
        self.divergence: NDArray[np.float64] = np.full(columns, np.inf)
        self.divergence[0] = 0.0
        self._taken = np.zeros((len(menu), columns), dtype=np.uint8)
        for taken, choices in zip(self._taken, menu.values(), strict=True):
            self.divergence = self._with(choices, taken)

    def _with(self, choices: list[Choice], taken: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Add one matrix; ``taken`` receives the choice made at each total."""
        best: NDArray[np.float64] = np.full_like(self.divergence, np.inf)
        for index, choice in enumerate(choices):
            units = self._units(choice)
            if units >= len(best):
                continue
            total = self.divergence[: len(best) - units] + choice.divergence
            better = total < best[units:]
            best[units:][better] = total[better]
            taken[units:][better] = index
        return best

    def _units(self, choice: Choice) -> int:
        return -(-choice.nbytes // self.unit)

    def solve(self, capacity: int) -> dict[str, str]:
        """The best assignment among those of the largest total within ``capacity`` bytes.

        Raises:
            UserError: no mix is that small.
        """
        reachable = np.flatnonzero(np.isfinite(self.divergence[: capacity // self.unit + 1]))
        if not len(reachable):
            least = smallest(self.menu)
            raise UserError(f"no mix fits in {capacity:,} bytes: the smallest has {least:,}")
        total = int(reachable[-1])
        assignment = {}
        for module, taken in reversed(list(zip(self.menu, self._taken, strict=True))):
            choice = self.menu[module][taken[total]]
            assignment[module] = choice.grid
            total -= self._units(choice)
        return {module: assignment[module] for module in self.menu}
