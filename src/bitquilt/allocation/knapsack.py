"""The multiple-choice knapsack, exactly: one type for each matrix, least total cost, within bytes.

Matrix sizes share a large common divisor (a row of blocks is never a few bytes), so a dynamic
programme over every reachable total is small, and its one table answers every budget. Embedding
and head may not share the divisor, since they have a row for each of an odd number of tokens: two
matrices stay out of the table, and every combination of their choices is looked up in the table of
the others. Which totals can be reached depends on sizes alone, so the size of an allocation is
known before anything is measured.

Costs and sizes are given as arrays, one entry per matrix, with one number for each of its choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import product
from operator import or_
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.bounds import open_choices
from bitquilt.allocation.space import AllocationVector, Float64Array, chosen_sum
from bitquilt.errors import UserError

ODD_SIZED = 2
"""Matrices that stay out of the table: at most the embedding and the head have odd sizes."""
MOST_UNITS = 4_000_000
"""The most columns that a table has; beyond that, sizes are rounded up to a coarser unit."""

TABLE_BYTES = 1 << 27
"""The most memory of the table of many matrices whose sizes share no large divisor."""

Sizes = Sequence[Sequence[int]]
"""The bytes of each matrix's choices."""


def smallest_nbytes(sizes: Sizes) -> int:
    """Return the bytes of the smallest allocation."""
    return sum(map(min, sizes))


def largest_nbytes(sizes: Sizes) -> int:
    """Return the bytes of the largest allocation."""
    return sum(map(max, sizes))


def fullest_nbytes(sizes: Sizes, capacity: int) -> int:
    """Return the bytes of the largest allocation that fits.

    Args:
        sizes: the bytes of each matrix's choices.
        capacity: the bytes that are there, no fewer than those of the smallest allocation.
    """
    odd, rest = _split(sizes)
    unit = _divisor(sizes[m] for m in rest)
    within = (1 << (capacity // unit + 1)) - 1
    reached = 1  # bit n is set where some allocation of the matrices so far takes n units
    for m in rest:
        units = {nbytes // unit for nbytes in sizes[m]}
        reached = reduce(or_, (reached << count for count in units)) & within
    best = 0
    for taken in {sum(chosen) for chosen in product(*(sizes[m] for m in odd))}:
        if taken <= capacity:
            fitting = reached & ((1 << ((capacity - taken) // unit + 1)) - 1)
            best = max(best, taken + unit * (fitting.bit_length() - 1) if fitting else 0)
    return best


def _split(sizes: Sizes) -> tuple[list[int], list[int]]:
    """Part the matrices into those that stay out of the table and those that go into it.

    The sizes of those that stay out share least with the others'.
    """
    own = [_divisor([sizes_of_one]) for sizes_of_one in sizes]

    def shared(m: int) -> int:
        return median_low(math.gcd(own[m], other) for other in own)

    odd = sorted(range(len(sizes)), key=shared)[:ODD_SIZED]
    return odd, [m for m in range(len(sizes)) if m not in odd]


def _divisor(sizes: Iterable[Sequence[int]]) -> int:
    """Return the largest common divisor of all sizes."""
    return math.gcd(*(nbytes for own in sizes for nbytes in own)) or 1


class _Combination(NamedTuple):
    """Choices for the matrices that stay out of the table, with the best for all others."""

    cost: float
    units: int
    """Size of the others."""
    chosen: AllocationVector
    """Choices of the matrices that stay out of the table."""


def least_cost(
    costs: Sequence[Float64Array], sizes: Sizes, capacity: int, most_units: int = MOST_UNITS
) -> AllocationVector:
    """Return the allocation of least cost within a capacity, by a table of what bounds leave open.

    Args:
        costs: the cost of each matrix's choices.
        sizes: their bytes.
        capacity: the bytes of all together.
        most_units: columns of the table at most.

    Raises:
        UserError: no allocation is that small.
    """
    if capacity < smallest_nbytes(sizes):
        raise _too_small(sizes, capacity)
    left = open_choices(costs, sizes, capacity)
    floors = [min(own[i] for i in some) for own, some in zip(sizes, left, strict=True)]
    above = [
        [own[i] - floor for i in some] for own, some, floor in zip(sizes, left, floors, strict=True)
    ]
    own_costs = [own[some] for own, some in zip(map(np.asarray, costs), left, strict=True)]
    room = min(capacity - sum(floors), largest_nbytes(above))
    vector = KnapsackTable(own_costs, above, room, most_units).solve(room)
    return tuple(some[i] for some, i in zip(left, vector, strict=True))


def best_choices(costs: Sequence[Float64Array], sizes: Sizes, capacity: int) -> list[int]:
    """Return which choice each matrix has in the mix of least total cost that fits.

    Where sizes share no large divisor, the table's unit is coarser than theirs, and what is left
    over goes to the exchanges that gain most.

    Args:
        costs: of each matrix's choices.
        sizes: their bytes.
        capacity: the bytes of all together.

    Raises:
        UserError: no mix is that small.
    """
    units = max(1 << 12, min(MOST_UNITS, TABLE_BYTES // len(costs)))
    chosen = list(least_cost(costs, sizes, capacity, units))
    while (step := _best_step(costs, sizes, chosen, capacity)) is not None:
        chosen[step[0]] = step[1]
    return chosen


def _best_step(
    costs: Sequence[Float64Array], sizes: Sizes, chosen: Sequence[int], capacity: int
) -> tuple[int, int] | None:
    """Return a matrix and its better choice that still fits; None where there is none."""
    room = capacity - sum(own[i] for own, i in zip(sizes, chosen, strict=True))
    steps = (
        (float(costs[m][i] - costs[m][now]), m, i)
        for m, now in enumerate(chosen)
        for i in range(len(sizes[m]))
        if sizes[m][i] - sizes[m][now] <= room and costs[m][i] < costs[m][now]
    )
    best = min(steps, default=None)
    return None if best is None else best[1:]


class KnapsackTable:
    """The least cost for every reachable total up to a capacity."""

    def __init__(
        self,
        costs: Sequence[Float64Array],
        sizes: Sizes,
        capacity: int,
        most_units: int = MOST_UNITS,
    ) -> None:
        """Fill the table.

        Args:
            costs: the cost of each matrix's choices.
            sizes: their bytes.
            capacity: bytes; no budget that the table is asked about may exceed it.
            most_units: columns of the table at most.

        Raises:
            UserError: ``capacity`` is below the smallest allocation.
        """
        self._costs, self._sizes = costs, sizes
        if capacity < smallest_nbytes(sizes):
            raise _too_small(sizes, capacity)
        self._odd, self._rest = _split(sizes)
        divisor = _divisor(sizes[m] for m in self._rest)
        self.unit = divisor * max(1, math.ceil(capacity / divisor / most_units))
        """Bytes that one column of the table stands for."""
        columns = capacity // self.unit + 1
        self._least: Float64Array = np.full(columns, np.inf)
        self._least[0] = 0.0
        self._taken = np.zeros((len(self._rest), columns), dtype=np.uint8)
        for taken, m in zip(self._taken, self._rest, strict=True):
            self._least = self._with(m, taken)
        self._best_within = _running_argmin(self._least)

    def _with(self, m: int, taken: NDArray[np.uint8]) -> Float64Array:
        """Add a matrix to the least costs; ``taken`` receives its choice at each total."""
        best: Float64Array = np.full_like(self._least, np.inf)
        for index, (cost, nbytes) in enumerate(zip(self._costs[m], self._sizes[m], strict=True)):
            units = self._units(nbytes)
            if units >= len(best):
                continue
            total = self._least[: len(best) - units] + cost
            better = total < best[units:]
            best[units:][better] = total[better]
            taken[units:][better] = index
        return best

    def _units(self, nbytes: int) -> int:
        return -(-nbytes // self.unit)

    def solve(self, capacity: int) -> AllocationVector:
        """Return the allocation of least cost within ``capacity`` bytes.

        Raises:
            UserError: no allocation is that small.
        """
        combinations = [
            best
            for chosen in product(*(range(len(self._sizes[m])) for m in self._odd))
            if (best := self._best(chosen, capacity)) is not None
        ]
        if not combinations:
            raise _too_small(self._sizes, capacity)
        _, units, chosen = min(combinations, key=lambda combination: combination.cost)
        vector = dict(zip(self._odd, chosen, strict=True))
        for m, taken in reversed(list(zip(self._rest, self._taken, strict=True))):
            vector[m] = int(taken[units])
            units -= self._units(self._sizes[m][vector[m]])
        return tuple(vector[m] for m in range(len(self._sizes)))

    def _best(self, chosen: AllocationVector, capacity: int) -> _Combination | None:
        """Return the best allocation with these choices out of the table; None where none fits."""
        nbytes = sum(self._sizes[m][i] for m, i in zip(self._odd, chosen, strict=True))
        limit = (capacity - nbytes) // self.unit
        if limit < 0 or not np.isfinite(self._least[self._best_within[limit]]):
            return None
        units = int(self._best_within[limit])
        cost = chosen_sum([self._costs[m] for m in self._odd], chosen) + float(self._least[units])
        return _Combination(cost, units, chosen)


def _too_small(sizes: Sizes, capacity: int) -> UserError:
    least = smallest_nbytes(sizes)
    return UserError(f"no mix fits in {capacity:,} bytes: the smallest has {least:,}")


def _running_argmin(values: Float64Array) -> NDArray[np.int64]:
    """Return, for each index, where the least value up to there is."""
    before = np.concatenate(([np.inf], np.minimum.accumulate(values)[:-1]))
    return np.maximum.accumulate(np.where(values < before, np.arange(len(values)), 0))
