"""EvoPress as published: stages and elitism; and it finds what is to be found."""

from __future__ import annotations

import numpy as np

from bitquilt.allocation.evopress import EvoPressSchedule, evolve
from bitquilt.allocation.space import AllocationSpace, Candidate

BITS = {"g2": 66, "g3": 98, "g4": 136, "g6": 210}
SPACE = AllocationSpace.of(
    {
        f"m{i}": [Candidate(g, units * b, 0.0) for g, b in BITS.items()]
        for i, units in enumerate([64] + 6 * [8] + 6 * [2])
    }
)
SMALLEST, LARGEST = (SPACE.nbytes(13 * (level,)) for level in (0, 3))


def test_stages_tokens_survivors_and_the_parent_at_the_end():
    calls = []

    def measure(mixes, windows):
        calls.append((len(mixes), len(windows), len(set(windows))))
        return np.array([[sum(mix)] for mix in mixes], dtype=float)

    schedule = EvoPressSchedule(generations=2, offspring=12, survivors=(6, 3, 1))
    capacity = (SMALLEST + LARGEST) // 2
    run = evolve(SPACE, capacity, measure, (300, 512), schedule, np.random.default_rng(0))
    incumbents = list(run)
    assert len(incumbents) == 3
    assert calls[0] == (12, 4, 4)
    generation = [(12, 4, 4), (6, 32, 32), (4, 256, 256)]
    assert calls[1:] == 2 * generation
    kl = [incumbent.kl for incumbent in incumbents]
    assert kl == sorted(kl, reverse=True)  # the measure has no noise, so elitism never loses
    assert [incumbent.before for incumbent in incumbents] == [kl[0], *kl[:-1]]


def test_finds_the_matrix_that_matters():
    def measure(mixes, windows):
        return np.array([[float(3 - mix[3])] for mix in mixes])

    schedule = EvoPressSchedule(generations=8, offspring=20, survivors=(6, 3, 1))
    capacity = (SMALLEST + LARGEST) // 2
    run = evolve(SPACE, capacity, measure, (4, 512), schedule, np.random.default_rng(0))
    assert list(run)[-1].vector[3] == 3


def test_where_nothing_can_be_swapped_it_ends():
    pinned = AllocationSpace.of({"a": [Candidate("g4", 10, 0.0)], "b": [Candidate("g4", 10, 0.0)]})
    run = evolve(
        pinned,
        20,
        lambda m, _: np.zeros((len(m), 1)),
        (4, 512),
        EvoPressSchedule(),
        np.random.default_rng(0),
    )
    assert [incumbent.vector for incumbent in run] == [(0, 0)]
