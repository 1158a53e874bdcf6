"""What bounds leave open, against brute force over every allocation."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.allocation.bounds import open_choices

problems = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@given(problems, st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_no_best_allocation_is_closed(problem, share):
    sizes = [[nbytes for nbytes, _ in own] for own in problem]
    costs = [np.array([cost for _, cost in own]) for own in problem]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    capacity = int(least + share * (most - least))
    left = open_choices(costs, sizes, capacity)
    fitting = {
        vector: sum(own[i] for own, i in zip(costs, vector, strict=True))
        for vector in product(*(range(len(own)) for own in sizes))
        if sum(own[i] for own, i in zip(sizes, vector, strict=True)) <= capacity
    }
    best = min(fitting.values())
    for vector, cost in fitting.items():
        if cost == best:
            assert all(i in some for i, some in zip(vector, left, strict=True))


def test_many_matrices_keep_few_choices():
    rng = np.random.default_rng(0)
    bits = np.arange(2, 12)
    costs = [rng.uniform(0.5, 2) * 4.0**-bits for _ in range(200)]
    sizes = [(1000 * bits).tolist()] * 200
    left = open_choices(costs, sizes, 200 * 5000 + 123)
    assert sum(map(len, left)) < 300
