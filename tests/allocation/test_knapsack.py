"""The table against brute force over every allocation."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.allocation.knapsack import (
    KnapsackTable,
    fullest_nbytes,
    largest_nbytes,
    least_cost,
    smallest_nbytes,
)
from bitquilt.errors import UserError

nbytes = st.integers(1, 40).map(lambda n: 32 * n)
problems = st.lists(
    st.lists(st.tuples(nbytes, st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=5
).map(lambda rows: tuple([[one[k] for one in row] for row in rows] for k in (1, 0)))
"""Costs and sizes."""


def chosen(values, vector):
    """The values of each matrix's choice."""
    return [own[i] for own, i in zip(values, vector, strict=True)]


def brute_force(costs, sizes, capacity):
    """The least cost of any allocation that fits, and the largest total of any."""
    vectors = product(*(range(len(own)) for own in sizes))
    fitting = [v for v in vectors if sum(chosen(sizes, v)) <= capacity]
    return min(sum(chosen(costs, v)) for v in fitting), max(sum(chosen(sizes, v)) for v in fitting)


@given(problems, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_equals_brute_force(problem, share):
    costs, sizes = problem
    least, most = smallest_nbytes(sizes), largest_nbytes(sizes)
    capacity = int(least + share * (most - least))
    cost, total = brute_force(costs, sizes, capacity)
    of_table = KnapsackTable(costs, sizes, most).solve(capacity)
    for vector in (of_table, least_cost([*map(np.array, costs)], sizes, capacity)):
        assert sum(chosen(sizes, vector)) <= capacity
        assert sum(chosen(costs, vector)) == pytest.approx(cost)
    assert fullest_nbytes(sizes, capacity) == total


def test_a_few_bytes_do_not_decide_the_embedding():
    """151,936 tokens leave other remainders than the blocks do; the best mix wins all the same."""
    bits = (110, 136, 144, 176)
    sizes = [[3072 * 4 * b for b in bits] for _ in range(40)]
    sizes.append([151_936 * 4 * b for b in bits])
    costs = [[4.0 ** (-b / 32) for b in bits] for _ in range(40)]
    costs.append([40 * 4.0 ** (-b / 32) for b in bits])
    capacity = (smallest_nbytes(sizes) + largest_nbytes(sizes)) // 2
    found = []
    for budget in range(capacity, capacity + 8 * 1111, 1111):
        vector = KnapsackTable(costs, sizes, budget).solve(budget)
        found.append(sum(chosen(costs, vector)))
    assert max(found) <= min(found) * 1.01


def test_coarse_unit_never_exceeds_the_capacity():
    sizes = [[33, 64 + i] for i in range(6)]
    vector = KnapsackTable([[2.0, 1.0]] * 6, sizes, 1000, most_units=100).solve(330)
    assert sum(chosen(sizes, vector)) <= 330


def test_below_the_smallest_mix_names_it():
    with pytest.raises(UserError, match="smallest has 160"):
        KnapsackTable([[1.0]], [[160]], 128)
    with pytest.raises(UserError, match="smallest has 160"):
        least_cost([np.array([1.0])], [[160]], 128)


def test_odd_embedding_and_head_do_not_shrink_the_unit():
    """A vocabulary of 151,669 has no divisor with a block's matrices; sizes stay exact."""
    tokens = 151_669
    sizes = [[1 << 20, 3 << 19]] * 40 + [[32 * tokens, 36 * tokens]] * 2
    least = smallest_nbytes(sizes)
    capacity = least + 5_000_000
    table = KnapsackTable([[2.0, 1.0]] * 42, sizes, capacity)
    assert table.unit == 1 << 19
    better = sum(table.solve(capacity))
    mixes = [
        (least + odd * 4 * tokens + (even << 19), 84.0 - odd - even)
        for odd in range(3)
        for even in range(41)
    ]
    fitting = [mix for mix in mixes if mix[0] <= capacity]
    assert fullest_nbytes(sizes, capacity) == max(total for total, _ in fitting)
    assert 84.0 - better == min(divergence for _, divergence in fitting)
