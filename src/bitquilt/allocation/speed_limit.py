"""The knapsack with a second budget: least divergence within bytes and within seconds a token.

Bytes stay exact. Seconds get a price, a Lagrange multiplier (Everett 1963): at every price the
table of :mod:`.knapsack` finds the exact best of divergence + price · seconds, and bisection finds
the price at which the seconds just suffice. What the last mix leaves of them is spent on exchanges
of one or two matrices. The prices also say how far any mix could be better: docs/decisions/speed.md
has what is left.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.knapsack import Candidate, CandidateSets, KnapsackTable
from bitquilt.errors import UserError

PRICES = 7
"""Tried, each halving the range in which the right one is, on a logarithmic scale."""
RANGE = 4.0
"""Factor by which prices rise until seconds suffice."""
IMPROVED = 3
"""Of the mixes found under different prices, the best that are improved by exchanges."""

Chosen = dict[str, Candidate]
"""Module path → what it is put on."""


def solve_with_speed_limit(menu: CandidateSets, capacity: int, seconds: float) -> dict[str, str]:
    """The best mix found within both budgets, module path → type name.

    Args:
        menu: what each matrix may be put on, with its seconds.
        capacity: bytes that the matrices may take.
        seconds: that they may take for a token.

    Raises:
        UserError: no mix is that small, or none of that size is that fast.
    """
    best = _priced(menu, capacity, 0.0)
    if _seconds(best) > seconds:
        found = sorted(_bisected(menu, capacity, seconds), key=_divergence)[:IMPROVED]
        best = min((_improved(menu, mix, capacity, seconds) for mix in found), key=_divergence)
    return {module: choice.qtype for module, choice in best.items()}


def least_seconds(menu: CandidateSets, capacity: int) -> float:
    """Seconds of the fastest mix within ``capacity`` bytes."""
    alone = {m: [replace(c, divergence=c.seconds) for c in own] for m, own in menu.items()}
    return _seconds(_solved(alone, menu, capacity))


def _bisected(menu: CandidateSets, capacity: int, seconds: float) -> list[Chosen]:
    """What prices near the right one give that is fast enough."""
    if (least := least_seconds(menu, capacity)) > seconds:
        raise UserError(
            f"no mix of that size is so fast: the matrices of the fastest take {least * 1e3:.3g} "
            f"ms a token, and {seconds * 1e3:.3g} ms are left for them; ask for less speed"
        )
    low = high = _spread(menu) / seconds / RANGE**5
    while _seconds(found := _priced(menu, capacity, high)) > seconds:
        low, high = high, high * RANGE
    enough = [found]
    for _ in range(PRICES):
        price = math.sqrt(low * high)
        found = _priced(menu, capacity, price)
        if _seconds(found) > seconds:
            low = price
        else:
            high = price
            enough += [found] if found not in enough else []
    return enough


def _spread(menu: CandidateSets) -> float:
    """From the least to the largest divergence, and not nothing."""
    ends = ([choice.divergence for choice in own] for own in menu.values())
    return sum(max(own) - min(own) for own in ends) + sys.float_info.min


def _priced(menu: CandidateSets, capacity: int, price: float) -> Chosen:
    """The exact best of divergence + price · seconds."""
    costs = {
        module: [replace(c, divergence=c.divergence + price * c.seconds) for c in own]
        for module, own in menu.items()
    }
    return _solved(costs, menu, capacity)


def _solved(costs: CandidateSets, menu: CandidateSets, capacity: int) -> Chosen:
    """The choices of the menu that are best under other costs."""
    qtypes = KnapsackTable(costs, capacity).solve(capacity)
    return {m: next(c for c in own if c.qtype == qtypes[m]) for m, own in menu.items()}


def _seconds(mix: Mapping[str, Candidate]) -> float:
    return sum(choice.seconds for choice in mix.values())


def _divergence(mix: Mapping[str, Candidate]) -> float:
    return sum(choice.divergence for choice in mix.values())


def _improved(menu: CandidateSets, mix: Chosen, capacity: int, seconds: float) -> Chosen:
    """The mix after the best exchanges of one or two matrices that both budgets allow."""
    while (moves := _best_moves(menu, mix, capacity, seconds)) is not None:
        mix = mix | moves
    return mix


def _best_moves(menu: CandidateSets, mix: Chosen, capacity: int, seconds: float) -> Chosen | None:
    """What to change; None where no change of two matrices is for the better."""
    moves = [(m, c) for m, own in menu.items() for c in own]
    owner = np.array([list(menu).index(m) for m, _ in moves])
    gained, nbytes, time = (
        np.array([getattr(c, of) - getattr(mix[m], of) for m, c in moves])
        for of in ("divergence", "nbytes", "seconds")
    )

    def both(values: NDArray[np.float64]) -> NDArray[np.float64]:
        pairs: NDArray[np.float64] = values[:, None] + values
        return pairs

    # what a matrix has already is a move too, so that pairs cover single changes
    allowed = (both(nbytes) <= capacity - sum(c.nbytes for c in mix.values())) & (
        both(time) <= seconds - _seconds(mix)
    )
    allowed &= owner[:, None] != owner
    gain = np.where(allowed, both(gained), 0.0)
    best = np.unravel_index(gain.argmin(), gain.shape)
    if gain[best] >= -1e-12 * _divergence(mix):
        return None
    return dict(moves[i] for i in best)
