"""The best comes first, and every other says how far behind it is."""

from __future__ import annotations

from bitquilt.allocation.racing import Difference
from bitquilt.allocation.selection import rank
from tests.allocation.test_racing import A, B, C, measured


def test_a_ranking_says_how_far_behind():
    measure = measured({A: 1.0, B: 1.1, C: 1.1}, noise=0.01)
    a, b, c = measure([A, B, C], range(16))
    ranked = rank({"knapsack": b, "race": a, "Q4_K_M": c})
    assert ranked[0].name == "race"
    assert ranked[0].behind == Difference(0.0, 0.0)
    assert ranked[1].behind.low > 0.09
    assert "behind" in str(ranked[1])
    assert rank({"race": a, "knapsack": a})[0].name == "race"
