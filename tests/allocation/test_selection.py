"""The best comes first, and every other says how far behind it is."""

from __future__ import annotations

from dataclasses import replace

from bitquilt.allocation.racing import Difference
from bitquilt.allocation.selection import Ranking, rank, verdict
from tests.allocation.test_racing import A, B, C, measured


def test_a_ranking_says_how_far_behind():
    measure = measured({A: 1.0, B: 1.1, C: 1.1}, noise=0.01)
    a, b, c = measure([A, B, C], range(16))
    ranked = rank({"knapsack": b, "race": a, "Q4_K_M": c}, tokens=2044)
    assert ranked[0].name == "race"
    assert ranked[0].behind == Difference(0.0, 0.0)
    assert ranked[1].behind.low > 0.09
    assert ranked[1].versus_best.endswith("% more")
    assert rank({"race": a, "knapsack": a}, 2044)[0].name == "race"


def ranking(name: str, kl: float, error: float, best: float = 0.1702) -> Ranking:
    return Ranking(name, kl, Difference(kl - best, error), 2044)


def test_the_verdict_names_text_unit_and_what_may_be_chance():
    said = verdict(
        [
            ranking("race", 0.1702, 0.0),
            ranking("knapsack", 0.1736, 0.002),
            ranking("evopress", 0.1855, 0.002),
            ranking("Q3_K_M", 0.3712, 0.015),
        ]
    )
    assert said == (
        "the types of the race are used: on 2,044 tokens that the search has not read, their "
        "selection KL is 0.17 nats/token; the knapsack has 0.174, 2.0% more, which may be chance; "
        "EvoPress has 0.185, 9.0% more; Q3_K_M has 0.371, 2.2 times as much"
    )


def test_the_verdict_on_equals_and_on_one_alone():
    alone = verdict([ranking("knapsack", 0.1702, 0.0)])
    assert alone.endswith("their selection KL is 0.17 nats/token; no preset is small enough")
    equals = verdict([ranking("race", 0.1702, 0.0), ranking("knapsack", 0.1702, 0.0)])
    assert equals.endswith("; the knapsack has 0.17, the same; no preset is small enough")
    assert "inf" not in verdict([ranking("a", 0.0, 0.0, 0.0), ranking("b", 0.0, 0.0, 0.0)])
    assert ranking("b", 0.17019999, 0.001).versus_best == "0.0% more, which may be chance"


def test_a_preset_that_loses_by_its_size_is_said_to_be_the_largest_that_fits():
    """Beside 94 MB, 71 MB are no fair comparison."""
    best = replace(ranking("knapsack", 0.0182, 0.0, 0.0182), nbytes=94_200_000)
    small = replace(ranking("Q3_K_M", 0.0688, 0.005, 0.0182), nbytes=71_200_000)
    assert verdict([best, small]).endswith(
        "; Q3_K_M has 0.0688, 3.8 times as much, and takes 71.20 MB: no larger preset fits"
    )
    near = replace(small, nbytes=93_900_000)
    assert verdict([best, near]).endswith("; Q3_K_M has 0.0688, 3.8 times as much")
    assert "fits" not in verdict([replace(best, nbytes=None), replace(small, nbytes=None)])
