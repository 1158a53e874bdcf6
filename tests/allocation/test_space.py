"""Vectors of integers and the allocations they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, Candidate

SETS = {
    "a": [Candidate("Q6_K", 30, 1.0), Candidate("Q2_K", 10, 4.0), Candidate("Q4_K", 20, 2.0)],
    "b": [Candidate("Q4_K", 40, 3.0), Candidate("Q6_K", 60, 1.0)],
}
SPACE = AllocationSpace.of(SETS)


def test_choices_go_by_size():
    assert SPACE.allocation((0, 1)) == {"a": "Q2_K", "b": "Q6_K"}
    assert SPACE.vector({"a": "Q6_K", "b": "Q4_K"}) == (2, 0)
    assert SPACE.nbytes((2, 1)) == 90
    np.testing.assert_array_equal(SPACE.scores[0], [4.0, 2.0, 1.0])


def test_the_best_allocation_within_a_capacity():
    assert solve(SPACE, 80) == (1, 1)
    assert solve(SPACE, 80, {1: 0}) == (2, 0)
    costs = [np.array([0.0, 9.0, 9.0]), np.array([1.0, 0.0])]
    assert solve(SPACE.rescored(costs), 100) == (0, 1)


def test_scores_times_factors():
    found = SPACE.scaled(np.array([2.0, 0.5]))
    np.testing.assert_array_equal(found.scores[0], [8.0, 4.0, 2.0])
    np.testing.assert_array_equal(found.scores[1], [1.5, 0.5])
    assert found.allocation((0, 1)) == SPACE.allocation((0, 1))


def test_a_qtype_that_is_no_candidate():
    with pytest.raises(ValueError, match="Q8_0 is not a candidate of a"):
        SPACE.vector({"a": "Q8_0", "b": "Q4_K"})
