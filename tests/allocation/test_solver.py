"""The second budget against brute force, and against what prices prove at a model's size."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bitquilt.allocation import solver
from bitquilt.allocation.knapsack import largest_nbytes, smallest_nbytes
from bitquilt.allocation.solver import least_seconds, solve
from bitquilt.allocation.space import AllocationSpace, Candidate, chosen_sum
from bitquilt.errors import UserError

ROW = 64
"""Bytes that sizes are multiples of."""


def random_sets(rng, matrices, qtypes):
    """Seconds go with bytes, but some types are slower for their size and some are faster."""
    slow = rng.uniform(0.6, 1.6, qtypes)
    sets = {}
    for m in range(matrices):
        weights, matters = int(rng.choice([1, 2, 3, 6])), np.exp(rng.normal(0, 1))
        sets[f"m{m}"] = [
            Candidate(
                f"g{g}",
                ROW * weights * (4 + 2 * g),
                float(matters * weights * 4.0 ** -(2 + g)),
                float(weights * (2 + g) * slow[g] * rng.uniform(0.9, 1.1)),
            )
            for g in range(qtypes)
        ]
    return sets


def limited(rng, sets):
    """Bytes, and a space whose seconds the best allocation of those bytes does not keep."""
    space = AllocationSpace.of(sets)
    least, most = smallest_nbytes(space.sizes), largest_nbytes(space.sizes)
    capacity = int(least + rng.uniform(0.2, 0.8) * (most - least))
    least = least_seconds(space, capacity)
    most = chosen_sum(space.seconds, solve(space, capacity))
    return capacity, AllocationSpace.of(sets, least + rng.uniform(0.1, 0.9) * (most - least))


def test_close_to_brute_force():
    rng = np.random.default_rng(0)
    behind = []
    for _ in range(60):
        sets = random_sets(rng, 6, 4)
        capacity, space = limited(rng, sets)
        vector = solve(space, capacity)
        assert space.nbytes(vector) <= capacity
        assert space.fast_enough(vector)
        best = min(
            sum(c.predicted_kl for c in chosen)
            for chosen in product(*sets.values())
            if sum(c.nbytes for c in chosen) <= capacity
            and sum(c.seconds for c in chosen) <= space.max_seconds
        )
        behind.append(chosen_sum(space.scores, vector) / best - 1)
    assert np.mean(np.array(behind) < 1e-9) >= 0.85
    assert np.mean(behind) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_at_a_models_size_no_mix_is_much_better(seed):
    """At any price p, min(score + p · seconds) − p · limit is below every allowed allocation."""
    rng = np.random.default_rng(seed)
    capacity, space = limited(rng, random_sets(rng, 99, 8))
    found = chosen_sum(space.scores, solve(space, capacity))
    bounds = []
    for price in found / space.max_seconds * np.geomspace(0.01, 100, 50):
        vector = solver._priced(space, capacity, price)
        over = chosen_sum(space.seconds, vector) - space.max_seconds
        bounds.append(chosen_sum(space.scores, vector) + price * over)
    assert max(bounds) <= found * (1 + 1e-9)
    assert found < max(bounds) * 1.02


def test_enough_seconds_change_nothing():
    sets = random_sets(np.random.default_rng(1), 20, 5)
    space = AllocationSpace.of(sets)
    capacity = (smallest_nbytes(space.sizes) + largest_nbytes(space.sizes)) // 2
    free = solve(space, capacity)
    enough = AllocationSpace.of(sets, chosen_sum(space.seconds, free))
    assert solve(enough, capacity) == free


def test_the_fastest_is_found_and_less_is_refused():
    sets = random_sets(np.random.default_rng(2), 5, 3)
    space = AllocationSpace.of(sets)
    capacity = largest_nbytes(space.sizes)
    least = min(
        sum(c.seconds for c in chosen)
        for chosen in product(*sets.values())
        if sum(c.nbytes for c in chosen) <= capacity
    )
    assert least_seconds(space, capacity) == pytest.approx(least)
    just = AllocationSpace.of(sets, least * 1.0001)
    assert just.fast_enough(solve(just, capacity))
    with pytest.raises(UserError, match="no file of that size is that fast"):
        solve(AllocationSpace.of(sets, least * 0.99), capacity)


def test_what_is_kept_does_not_change():
    sets = random_sets(np.random.default_rng(3), 8, 4)
    space = AllocationSpace.of(sets)
    capacity = (smallest_nbytes(space.sizes) + largest_nbytes(space.sizes)) // 2
    kept = {1: 0, 4: 3}
    vector = solve(space, capacity, kept)
    assert all(vector[m] == index for m, index in kept.items())
    assert space.nbytes(vector) <= capacity
