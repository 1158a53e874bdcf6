"""The search finds better mixes than the knapsack on wrong scores, and knows when to stop."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation.race_search import RaceSchedule, RaceSearch
from bitquilt.allocation.solver import solve
from tests.allocation.synthetic import Synthetic
from tests.progress import Recorded

DEFAULT = RaceSchedule()


def started(model, capacities=None, said=None, seed=0, windows=400, schedule=DEFAULT):
    return RaceSearch(
        model.space,
        capacities or [model.capacity],
        model.measure,
        windows,
        np.random.default_rng(seed),
        Recorded(lines=said),
        schedule,
    )


def rounds(search, count):
    """The best allocations after the first races and some rounds."""
    for step, _ in enumerate(search.run()):
        if step + 1 >= DEFAULT.first_races + count:
            break
    return search.best


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_than_the_knapsack_on_scores_that_are_wrong(seed):
    model = Synthetic(seed, wrong=0.7)
    search = started(model, seed=seed)
    start = search.best[model.capacity]
    best = rounds(search, 4)[model.capacity]
    assert model.space.nbytes(best) <= model.capacity
    assert model.kl(best) < model.kl(start)
    ideal = solve(model.space.rescored(model.true), model.capacity)
    gained = model.kl(start) - model.kl(best)
    assert gained > 0.6 * (model.kl(start) - model.kl(ideal))


def test_where_scores_are_right_it_stops_and_has_lost_nothing():
    model = Synthetic(wrong=0.0, texts=0.0)
    search = started(model)
    start = search.best[model.capacity]
    steps = sum(1 for _ in search.run())
    assert steps < DEFAULT.first_races + 10
    assert model.kl(search.best[model.capacity]) <= 1.01 * model.kl(start)


def test_races_read_different_text():
    model = Synthetic()
    rounds(started(model), 1)
    races, windows = DEFAULT.first_races, DEFAULT.first_windows
    texts = [windows for _, windows in model.calls[:races]]
    assert len({window for text in texts for window in text}) == races * windows


def test_several_capacities_learn_from_each_other():
    model = Synthetic(wrong=0.7)
    capacities = [model.capacity, int(1.2 * model.capacity)]
    search = started(model, capacities)
    first = {capacity: search.best[capacity] for capacity in capacities}
    best = rounds(search, 6)
    for capacity in capacities:
        assert model.space.nbytes(best[capacity]) <= capacity
        assert model.kl(best[capacity]) < model.kl(first[capacity])
    assert model.kl(best[capacities[1]]) < model.kl(best[capacities[0]])


def test_same_seed_same_allocations():
    found = [rounds(started(Synthetic(), seed=3), 2) for _ in range(2)]
    assert found[0] == found[1]


def test_what_does_not_predict_is_not_used():
    said, model = [], Synthetic()
    rounds(started(model, said=said, schedule=RaceSchedule(least_rank=1.1)), 1)
    assert "rank correlation" in said[0]
    assert "Neither is reliable enough" in said[-1]


def test_with_fewer_windows_than_a_race_reads():
    model = Synthetic()
    best = rounds(started(model, windows=2), 1)
    assert model.space.nbytes(best[model.capacity]) <= model.capacity
    assert all(len(set(windows)) == len(windows) for _, windows in model.calls)
