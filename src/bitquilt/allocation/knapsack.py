"""The multiple-choice knapsack, exactly: one type a matrix, least predicted divergence, in bytes.

Matrix sizes share a large common divisor (a row of blocks is never a few bytes), so a dynamic
programme over every reachable total is small, and its one table answers every budget. Embedding
and head may not share it, having a row for each of an odd number of tokens: two matrices stand
apart, and every combination of theirs is looked up in the table of the rest. Which totals can be
reached depends on sizes alone: the size of a mix is known before anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import or_
from statistics import median_low
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitquilt.errors import UserError

ODD_SIZED = 2
"""Matrices that are not in the table: embedding and head, at most, are of odd sizes."""
MOST_UNITS = 4_000_000
"""Table columns; beyond that sizes are rounded up to a coarser unit."""


@dataclass(frozen=True)
class Candidate:
    """One matrix on one type."""

    qtype: str
    nbytes: int
    """In the file, alignment included."""
    divergence: float
    """Predicted, in nats per token."""
    seconds: float = 0.0
    """Predicted, of a token that is generated."""


CandidateSets = Mapping[str, list[Candidate]]
"""Module path → what it may be put on."""


def smallest_nbytes(menu: CandidateSets) -> int:
    """Bytes of the smallest mix."""
    return sum(min(choice.nbytes for choice in choices) for choices in menu.values())


def largest_nbytes(menu: CandidateSets) -> int:
    """Bytes of the largest mix."""
    return sum(max(choice.nbytes for choice in choices) for choices in menu.values())


def fullest_nbytes(menu: CandidateSets, capacity: int) -> int:
    """Bytes of the largest mix that fits in ``capacity``, which must not be below the smallest."""
    apart, rest = _split(menu)
    unit = _divisor(rest)
    within = (1 << (capacity // unit + 1)) - 1
    reached = 1  # bit n is set where some mix of the rest so far takes n units
    for choices in rest.values():
        sizes = {choice.nbytes // unit for choice in choices}
        reached = reduce(or_, (reached << size for size in sizes)) & within
    best = 0
    for taken in {_nbytes(chosen) for chosen in product(*apart.values())}:
        if taken <= capacity:
            fitting = reached & ((1 << ((capacity - taken) // unit + 1)) - 1)
            best = max(best, taken + unit * (fitting.bit_length() - 1) if fitting else 0)
    return best


def _split(menu: CandidateSets) -> tuple[CandidateSets, CandidateSets]:
    """The matrices that stand apart, sharing the least with the others' sizes, and the rest."""
    own = {module: _divisor({module: choices}) for module, choices in menu.items()}

    def shared(module: str) -> int:
        return median_low(math.gcd(own[module], other) for other in own.values())

    odd = sorted(menu, key=shared)[:ODD_SIZED]
    apart = {module: menu[module] for module in odd}
    return apart, {module: menu[module] for module in menu if module not in apart}


def _divisor(menu: CandidateSets) -> int:
    """The largest common divisor of all sizes."""
    return math.gcd(*(choice.nbytes for choices in menu.values() for choice in choices)) or 1


def _nbytes(chosen: Iterable[Candidate]) -> int:
    return sum(choice.nbytes for choice in chosen)


class _Mix(NamedTuple):
    divergence: float
    units: int
    """That the rest takes."""
    chosen: tuple[Candidate, ...]
    """For the matrices that stand apart."""


class KnapsackTable:
    """Least divergence for every reachable total up to a capacity."""

    def __init__(self, menu: CandidateSets, capacity: int) -> None:
        """Fill the table.

        Args:
            menu: what each matrix may be put on.
            capacity: bytes; no budget asked of the table may exceed it.

        Raises:
            UserError: ``capacity`` is below the smallest mix.
        """
        least = smallest_nbytes(menu)
        if capacity < least:
            raise UserError(f"no mix fits in {capacity:,} bytes: the smallest has {least:,}")
        self.menu = menu
        self._apart, self._rest = _split(menu)
        divisor = _divisor(self._rest)
        self.unit = divisor * max(1, math.ceil(capacity / divisor / MOST_UNITS))
        columns = capacity // self.unit + 1
        self.divergence: NDArray[np.float64] = np.full(columns, np.inf)
        self.divergence[0] = 0.0
        self._taken = np.zeros((len(self._rest), columns), dtype=np.uint8)
        for taken, choices in zip(self._taken, self._rest.values(), strict=True):
            self.divergence = self._with(choices, taken)
        self._best_within = _running_argmin(self.divergence)

    def _with(self, choices: list[Candidate], taken: NDArray[np.uint8]) -> NDArray[np.float64]:
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

    def _units(self, choice: Candidate) -> int:
        return -(-choice.nbytes // self.unit)

    def solve(self, capacity: int) -> dict[str, str]:
        """The allocation of least divergence within ``capacity`` bytes.

        Raises:
            UserError: no mix is that small.
        """
        mixes = [
            mix
            for chosen in product(*self._apart.values())
            if (mix := self._best(chosen, capacity)) is not None
        ]
        if not mixes:
            least = smallest_nbytes(self.menu)
            raise UserError(f"no mix fits in {capacity:,} bytes: the smallest has {least:,}")
        _, total, chosen = min(mixes, key=lambda mix: mix.divergence)
        allocation = {
            module: choice.qtype for module, choice in zip(self._apart, chosen, strict=True)
        }
        for module, taken in reversed(list(zip(self._rest, self._taken, strict=True))):
            choice = self._rest[module][taken[total]]
            allocation[module] = choice.qtype
            total -= self._units(choice)
        return {module: allocation[module] for module in self.menu}

    def _best(self, chosen: tuple[Candidate, ...], capacity: int) -> _Mix | None:
        """The best mix with these choices for the matrices apart; None if none fits."""
        limit = (capacity - _nbytes(chosen)) // self.unit
        if limit < 0 or not np.isfinite(self.divergence[self._best_within[limit]]):
            return None
        units = int(self._best_within[limit])
        divergence = sum(choice.divergence for choice in chosen) + self.divergence[units]
        return _Mix(divergence, units, chosen)


def _running_argmin(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each index, where the least value up to there is."""
    before = np.concatenate(([np.inf], np.minimum.accumulate(values)[:-1]))
    return np.maximum.accumulate(np.where(values < before, np.arange(len(values)), 0))
