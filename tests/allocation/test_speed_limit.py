"""The second budget against brute force, and against what prices prove at a model's size."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bitquilt.allocation.knapsack import Candidate, largest_nbytes, smallest_nbytes
from bitquilt.allocation.speed_limit import least_seconds, solve_with_speed_limit
from bitquilt.errors import UserError

ROW = 64
"""Bytes that sizes are multiples of."""


def random_menu(rng, matrices, qtypes):
    """Seconds go with bytes, but some types are slower for their size and some are faster."""
    slow = rng.uniform(0.6, 1.6, qtypes)
    menu = {}
    for m in range(matrices):
        weights, matters = int(rng.choice([1, 2, 3, 6])), np.exp(rng.normal(0, 1))
        menu[f"m{m}"] = [
            Candidate(
                f"g{g}",
                ROW * weights * (4 + 2 * g),
                float(matters * weights * 4.0 ** -(2 + g)),
                float(weights * (2 + g) * slow[g] * rng.uniform(0.9, 1.1)),
            )
            for g in range(qtypes)
        ]
    return menu


def budgets(rng, menu):
    """Bytes, and seconds that the best mix of those bytes does not keep."""
    capacity = int(
        smallest_nbytes(menu)
        + rng.uniform(0.2, 0.8) * (largest_nbytes(menu) - smallest_nbytes(menu))
    )
    least, most = (
        least_seconds(menu, capacity),
        total(menu, solve_with_speed_limit(menu, capacity, np.inf), "seconds"),
    )
    return capacity, least + rng.uniform(0.1, 0.9) * (most - least)


def total(menu, mix, what):
    return sum(getattr(c, what) for m, qtype in mix.items() for c in menu[m] if c.qtype == qtype)


def test_close_to_brute_force():
    rng = np.random.default_rng(0)
    behind = []
    for _ in range(60):
        menu = random_menu(rng, 6, 4)
        capacity, seconds = budgets(rng, menu)
        mix = solve_with_speed_limit(menu, capacity, seconds)
        assert total(menu, mix, "nbytes") <= capacity
        assert total(menu, mix, "seconds") <= seconds
        best = min(
            sum(c.divergence for c in chosen)
            for chosen in product(*menu.values())
            if sum(c.nbytes for c in chosen) <= capacity
            and sum(c.seconds for c in chosen) <= seconds
        )
        behind.append(total(menu, mix, "divergence") / best - 1)
    assert np.mean(np.array(behind) < 1e-9) >= 0.85
    assert np.mean(behind) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_at_a_models_size_no_mix_is_much_better(seed):
    """At any price p, min(divergence + p · seconds) − p · limit is below every allowed mix."""
    from bitquilt.allocation.speed_limit import _divergence, _priced, _seconds

    rng = np.random.default_rng(seed)
    menu = random_menu(rng, 99, 8)
    capacity, seconds = budgets(rng, menu)
    found = total(menu, solve_with_speed_limit(menu, capacity, seconds), "divergence")
    scale = found / seconds
    priced = {p: _priced(menu, capacity, p) for p in scale * np.geomspace(0.01, 100, 50)}
    bound = max(_divergence(mix) + p * (_seconds(mix) - seconds) for p, mix in priced.items())
    assert bound <= found * (1 + 1e-9)
    assert found < bound * 1.02


def test_enough_seconds_change_nothing():
    menu = random_menu(np.random.default_rng(1), 20, 5)
    capacity = (smallest_nbytes(menu) + largest_nbytes(menu)) // 2
    free = solve_with_speed_limit(menu, capacity, np.inf)
    assert solve_with_speed_limit(menu, capacity, total(menu, free, "seconds")) == free


def test_the_fastest_is_found_and_less_is_refused():
    menu = random_menu(np.random.default_rng(2), 5, 3)
    capacity = largest_nbytes(menu)
    least = min(
        sum(c.seconds for c in mix)
        for mix in product(*menu.values())
        if sum(c.nbytes for c in mix) <= capacity
    )
    assert least_seconds(menu, capacity) == pytest.approx(least)
    assert (
        total(menu, solve_with_speed_limit(menu, capacity, least * 1.0001), "seconds")
        <= least * 1.0001
    )
    with pytest.raises(UserError, match="no mix of that size is so fast"):
        solve_with_speed_limit(menu, capacity, least * 0.99)
