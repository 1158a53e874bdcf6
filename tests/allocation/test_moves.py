"""Level swaps: children fit the budget, use it up, and differ by few swaps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.allocation.moves import MOST_SWAPS, level_swaps, random_vector
from bitquilt.allocation.space import AllocationSpace, Candidate

BITS = {"g2": 66, "g3": 98, "g4": 136, "g6": 210}
SPACE = AllocationSpace.of(
    {
        f"m{i}": [Candidate(g, units * b, 0.0) for g, b in BITS.items()]
        for i, units in enumerate([64] + 6 * [8] + 6 * [2])
    }
)
SMALLEST, LARGEST = (SPACE.nbytes(13 * (level,)) for level in (0, 3))


@given(st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_mix_fits_and_no_raise_would(share, seed):
    capacity = int(SMALLEST + share * (LARGEST - SMALLEST))
    rng = np.random.default_rng(seed)
    parent = random_vector(SPACE, capacity, rng)
    child = level_swaps(SPACE, parent, capacity, rng)
    # a swap may lower what an earlier one raised; what was lowered is not raised again
    for mix, most in ((parent, 0), (child, MOST_SWAPS)):
        room = capacity - SPACE.nbytes(mix)
        assert room >= 0
        raisable = [
            level + 1 < len(sizes) and sizes[level + 1] - sizes[level] <= room
            for sizes, level in zip(SPACE.sizes, mix, strict=True)
        ]
        assert sum(raisable) <= most


def test_a_child_differs_by_few_swaps():
    rng = np.random.default_rng(0)
    capacity = (SMALLEST + LARGEST) // 2
    parent = random_vector(SPACE, capacity, rng)
    lowered = []
    for _ in range(300):
        child = level_swaps(SPACE, parent, capacity, rng)
        lowered.append(sum(max(0, a - b) for a, b in zip(parent, child, strict=True)))
    assert max(lowered) <= MOST_SWAPS
    # min(U(1, 3), U(1, 3)) is 1 in five cases of nine
    assert 0.4 < np.mean(np.array(lowered) == 1) < 0.7
