"""The best allocation by scores: least total within bytes, and within seconds per token if asked.

Without a limit of speed this is the exact knapsack. With one, bytes stay exact, and seconds get a
price, a Lagrange multiplier (Everett 1963): at every price the table of :mod:`.knapsack` finds the
exact best of score + price · seconds, and bisection finds the price at which the seconds just
suffice. What the last allocation leaves of the seconds is spent on exchanges of one or two
matrices. The prices also bound how much better any allocation could be: docs/decisions/speed.md has
the gap.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from bitquilt.allocation.knapsack import least_cost
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array, chosen_sum
from bitquilt.errors import UserError

PRICES = 7
"""Prices that are tried; each halves the range of the right one, on a logarithmic scale."""
PRICE_STEP = 4.0
"""The factor by which prices rise until the seconds suffice."""
IMPROVED = 3
"""How many of the allocations found under different prices, the best ones, exchanges improve."""


def solve(
    space: AllocationSpace, capacity: int, kept: Mapping[int, int] | None = None
) -> AllocationVector:
    """Return the allocation of least total score within bytes and within the space's seconds.

    It is the exact optimum where the seconds do not bind, and close to it where they do.

    Args:
        space: what may be chosen, with its scores.
        capacity: bytes that the matrices may take.
        kept: index of a module → index of its choice, for modules that are not to change.

    Raises:
        UserError: no allocation is that small, or none of that size is that fast.
    """
    if kept:
        open_ones = solve(space.restricted(kept), capacity)
        return tuple(kept.get(m, index) for m, index in enumerate(open_ones))
    best = _priced(space, capacity, 0.0)
    if space.fast_enough(best):
        return best

    def score(vector: AllocationVector) -> float:
        return chosen_sum(space.scores, vector)

    found = sorted(_bisected(space, capacity), key=score)[:IMPROVED]
    return min((_improved(space, vector, capacity) for vector in found), key=score)


def least_seconds(space: AllocationSpace, capacity: int) -> float:
    """Return the seconds of the fastest allocation within ``capacity`` bytes."""
    fastest = least_cost(space.seconds, space.sizes, capacity)
    return chosen_sum(space.seconds, fastest)


def _bisected(space: AllocationSpace, capacity: int) -> list[AllocationVector]:
    """Return those allocations that are fast enough, of prices near the right one."""
    if (least := least_seconds(space, capacity)) > space.max_seconds:
        left = max(0.0, space.max_seconds)
        raise UserError(
            "no file of that size is that fast: the matrices of the fastest take "
            f"{least * 1e3:.3g} ms per token, and only {left * 1e3:.3g} ms are left for them; ask "
            "for a lower speed"
        )
    low = high = _spread(space.scores) / space.max_seconds / PRICE_STEP**5
    while not space.fast_enough(found := _priced(space, capacity, high)):
        low, high = high, high * PRICE_STEP
    enough = [found]
    for _ in range(PRICES):
        price = math.sqrt(low * high)
        found = _priced(space, capacity, price)
        if not space.fast_enough(found):
            low = price
        else:
            high = price
            enough += [found] if found not in enough else []
    return enough


def _spread(scores: Sequence[Float64Array]) -> float:
    """Return the difference between the largest and the least total score, which is never zero."""
    return float(sum(own.max() - own.min() for own in scores)) + sys.float_info.min


def _priced(space: AllocationSpace, capacity: int, price: float) -> AllocationVector:
    """Return the exact best of score + price · seconds."""
    pairs = zip(space.scores, space.seconds, strict=True)
    costs = [scores + price * seconds for scores, seconds in pairs]
    return least_cost(costs, space.sizes, capacity)


def _improved(space: AllocationSpace, vector: AllocationVector, capacity: int) -> AllocationVector:
    """Make the best exchanges of one or two matrices that both budgets allow."""
    while (exchange := _best_exchange(space, vector, capacity)) is not None:
        vector = tuple(exchange.get(m, index) for m, index in enumerate(vector))
    return vector


def _best_exchange(
    space: AllocationSpace, vector: AllocationVector, capacity: int
) -> dict[int, int] | None:
    """New choices for one or two matrices; None where no such exchange lowers the score."""
    moves = [(m, i) for m, own in enumerate(space.sizes) for i in range(len(own))]
    owner = np.array([m for m, _ in moves])

    def gain_of(values: Sequence[Sequence[float] | Float64Array]) -> Float64Array:
        """Return what each pair of moves adds, [moves, moves]."""
        one = np.array([values[m][i] - values[m][vector[m]] for m, i in moves])
        pairs: Float64Array = one[:, None] + one
        return pairs

    # what a matrix has already is a move too, so that pairs cover single changes
    allowed = (gain_of(space.sizes) <= capacity - space.nbytes(vector)) & (
        gain_of(space.seconds) <= space.max_seconds - chosen_sum(space.seconds, vector)
    )
    allowed &= owner[:, None] != owner
    gain = np.where(allowed, gain_of(space.scores), 0.0)
    best = np.unravel_index(gain.argmin(), gain.shape)
    if gain[best] >= -1e-12 * chosen_sum(space.scores, vector):
        return None
    return dict(moves[i] for i in best)
