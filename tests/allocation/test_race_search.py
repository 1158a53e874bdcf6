"""The search finds better mixes than the knapsack on wrong scores, and knows when to stop."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation import race_search
from bitquilt.allocation.race_search import LESSON_WINDOWS, LESSONS, RaceSearch
from tests.allocation.synthetic import Synthetic
from tests.progress import Recorded


def started(model, capacities=None, said=None, seed=0, windows=400):
    return RaceSearch(
        model.mixes,
        capacities or [model.capacity],
        model.measure,
        windows,
        np.random.default_rng(seed),
        Recorded(lines=said),
    )


def rounds(search, count):
    """The best mixes after the lessons and some rounds."""
    for step, _ in enumerate(search.run()):
        if step + 1 >= LESSONS + count:
            break
    return search.best


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_than_the_knapsack_on_scores_that_are_wrong(seed):
    model = Synthetic(seed, wrong=0.7)
    search = started(model, seed=seed)
    start = search.best[model.capacity]
    best = rounds(search, 4)[model.capacity]
    assert model.mixes.nbytes(best) <= model.capacity
    assert model.kl(best) < model.kl(start)
    ideal = model.mixes.solve(model.true, model.capacity, {})
    gained = model.kl(start) - model.kl(best)
    assert gained > 0.6 * (model.kl(start) - model.kl(ideal))


def test_where_scores_are_right_it_stops_and_has_lost_nothing():
    model = Synthetic(wrong=0.0, texts=0.0)
    search = started(model)
    start = search.best[model.capacity]
    steps = sum(1 for _ in search.run())
    assert steps < LESSONS + 10
    assert model.kl(search.best[model.capacity]) <= 1.01 * model.kl(start)


def test_races_read_different_text():
    model = Synthetic()
    rounds(started(model), 1)
    texts = [windows for _, windows in model.calls[:LESSONS]]
    assert len({window for windows in texts for window in windows}) == LESSONS * LESSON_WINDOWS


def test_several_capacities_learn_from_each_other():
    model = Synthetic(wrong=0.7)
    capacities = [model.capacity, int(1.2 * model.capacity)]
    search = started(model, capacities)
    first = {capacity: search.best[capacity] for capacity in capacities}
    best = rounds(search, 6)
    for capacity in capacities:
        assert model.mixes.nbytes(best[capacity]) <= capacity
        assert model.kl(best[capacity]) < model.kl(first[capacity])
    assert model.kl(best[capacities[1]]) < model.kl(best[capacities[0]])


def test_same_seed_same_mixes():
    mixes = [rounds(started(Synthetic(), seed=3), 2) for _ in range(2)]
    assert mixes[0] == mixes[1]


def test_what_does_not_predict_has_no_say(monkeypatch):
    monkeypatch.setattr(race_search, "TRUSTED", 1.1)
    said, model = [], Synthetic()
    rounds(started(model, said=said), 1)
    assert "rank correlation" in said[0]
    assert "neither is to be trusted" in said[-1]


def test_with_fewer_windows_than_a_race_reads():
    model = Synthetic()
    best = rounds(started(model, windows=2), 1)
    assert model.mixes.nbytes(best[model.capacity]) <= model.capacity
    assert all(len(set(windows)) == len(windows) for _, windows in model.calls)
