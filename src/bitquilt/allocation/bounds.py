"""Choices that no best allocation has, found before the knapsack's table is filled.

At any price of a byte λ ≥ 0, Σ min(cost + λ · bytes) − λ · capacity is a lower bound of the least
cost within the capacity (Lagrange; Everett 1963). A choice whose own cost + λ · bytes exceeds its
matrix's minimum by more than what lies between that bound and an allocation that fits can be part
of no better one. At the best price little lies between them, so that most matrices keep one or two
choices, and an exact table over what they leave open is small (variable fixing, Nauss 1979).

Letters: M matrices, K the most choices that one has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.space import Float64Array

HALVINGS = 80
"""Of the range of the price: float64 tells no more apart."""
BOUND_ERROR = 1e-9
"""Relative error of sums of costs, beside which bounds are not trusted."""


def open_choices(
    costs: Sequence[Float64Array], sizes: Sequence[Sequence[int]], capacity: int
) -> list[list[int]]:
    """Return the indices of each matrix's choices that an allocation of least cost may have.

    Args:
        costs: the cost of each matrix's choices.
        sizes: their bytes.
        capacity: bytes, no fewer than those of the smallest allocation.
    """
    cost, nbytes = _table(costs, math.inf), _table(sizes, 0.0)
    price = _best_price(cost, nbytes, capacity)
    priced = cost + price * nbytes
    least = priced.min(axis=1)
    bound = float(least.sum()) - price * capacity
    feasible = _feasible(cost, nbytes, capacity, price)
    reached = float(cost[np.arange(len(cost)), feasible].sum())
    slack = max(0.0, reached - bound) + BOUND_ERROR * (abs(reached) + price * capacity)
    within = priced - least[:, None] <= slack
    within[np.arange(len(cost)), feasible] = True
    return [np.flatnonzero(own).tolist() for own in within]


def _table(numbers: Sequence[Sequence[float] | Float64Array], lacking: float) -> Float64Array:
    """Put rows of unequal length into [M, K], with a number for what they lack."""
    table = np.full((len(numbers), max(map(len, numbers))), lacking)
    for row, own in zip(table, numbers, strict=True):
        row[: len(own)] = own
    return table


def _cheapest(
    cost: Float64Array, nbytes: Float64Array, price: float
) -> tuple[NDArray[np.intp], float]:
    """Return each matrix's choice [M] at a price, the smallest of equals, and their bytes."""
    priced = cost + price * nbytes
    tied = priced == priced.min(axis=1, keepdims=True)
    chosen = np.where(tied, nbytes, np.inf).argmin(axis=1)
    return chosen, float(nbytes[np.arange(len(cost)), chosen].sum())


def _best_price(cost: Float64Array, nbytes: Float64Array, capacity: int) -> float:
    """Return the lowest price, to the precision of floats, at which what is cheapest fits."""
    if _cheapest(cost, nbytes, 0.0)[1] <= capacity:
        return 0.0
    spread = float(np.where(np.isfinite(cost), cost, 0.0).max() - cost.min())
    low, high = 0.0, 2 * spread + math.ulp(1.0)  # sizes differ by a byte at least
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _cheapest(cost, nbytes, middle)[1] <= capacity:
            high = middle
        else:
            low = middle
    return high


def _feasible(
    cost: Float64Array, nbytes: Float64Array, capacity: int, price: float
) -> NDArray[np.intp]:
    """Return choices [M] that fit: the cheapest at a price, then whatever single change gains."""
    chosen, taken = _cheapest(cost, nbytes, price)
    rows = np.arange(len(cost))
    while True:
        fits = nbytes - nbytes[rows, chosen][:, None] <= capacity - taken
        gain = np.where(fits, cost - cost[rows, chosen][:, None], 0.0)
        m, i = np.unravel_index(gain.argmin(), gain.shape)
        if gain[m, i] >= 0:
            return chosen
        taken += float(nbytes[m, i] - nbytes[m, chosen[m]])
        chosen[m] = i
