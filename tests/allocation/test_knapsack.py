"""The table against brute force over every assignment."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.allocation.knapsack import (
    Candidate,
    KnapsackTable,
    fullest_nbytes,
    largest_nbytes,
    smallest_nbytes,
)
from bitquilt.errors import UserError

sizes = st.integers(1, 40).map(lambda n: 32 * n)
menus = st.lists(
    st.lists(st.tuples(sizes, st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=5
).map(
    lambda rows: {
        f"m{i}": [Candidate(f"g{j}", nbytes, cost) for j, (nbytes, cost) in enumerate(row)]
        for i, row in enumerate(rows)
    }
)


def brute_force(menu, capacity):
    """The least divergence of any mix that fits, and the largest total of any."""
    mixes = [
        (sum(c.nbytes for c in mix), sum(c.divergence for c in mix))
        for mix in product(*menu.values())
    ]
    fitting = [mix for mix in mixes if mix[0] <= capacity]
    return min(divergence for _, divergence in fitting), max(total for total, _ in fitting)


@given(menus, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_equals_brute_force(menu, share):
    capacity = int(smallest_nbytes(menu) + share * (largest_nbytes(menu) - smallest_nbytes(menu)))
    allocation = KnapsackTable(menu, largest_nbytes(menu)).solve(capacity)
    chosen = [next(c for c in menu[m] if c.qtype == g) for m, g in allocation.items()]
    divergence, total = brute_force(menu, capacity)
    assert sum(c.nbytes for c in chosen) <= capacity
    assert sum(c.divergence for c in chosen) == pytest.approx(divergence)
    assert fullest_nbytes(menu, capacity) == total


def test_a_few_bytes_do_not_decide_the_embedding():
    """151,936 tokens leave other remainders than the blocks do; the best mix wins all the same."""
    bits = {"IQ3_S": 110, "IQ4_XS": 136, "Q4_K": 144, "Q5_K": 176}
    menu = {
        f"m{i}": [Candidate(g, 3072 * 4 * b, 4.0 ** (-b / 32)) for g, b in bits.items()]
        for i in range(40)
    }
    menu["embedding"] = [
        Candidate(g, 151_936 * 4 * b, 40 * 4.0 ** (-b / 32)) for g, b in bits.items()
    ]
    capacity = (smallest_nbytes(menu) + largest_nbytes(menu)) // 2
    costs = []
    for budget in range(capacity, capacity + 8 * 1111, 1111):
        allocation = KnapsackTable(menu, budget).solve(budget)
        costs.append(
            sum(c.divergence for m, g in allocation.items() for c in menu[m] if c.qtype == g)
        )
    assert max(costs) <= min(costs) * 1.01


def test_coarse_unit_never_exceeds_the_capacity(monkeypatch):
    monkeypatch.setattr("bitquilt.allocation.knapsack.MOST_UNITS", 100)
    menu = {f"m{i}": [Candidate("a", 33, 2.0), Candidate("b", 64 + i, 1.0)] for i in range(6)}
    allocation = KnapsackTable(menu, 1000).solve(330)
    assert sum(c.nbytes for m, g in allocation.items() for c in menu[m] if c.qtype == g) <= 330


def test_below_the_smallest_mix_names_it():
    with pytest.raises(UserError, match="smallest has 160"):
        KnapsackTable({"m": [Candidate("g", 160, 1.0)]}, 128)


def test_odd_embedding_and_head_do_not_shrink_the_unit():
    """A vocabulary of 151,669 has no divisor with a block's matrices; sizes stay exact."""
    tokens = 151_669
    menu = {
        f"m{i}": [Candidate("a", 1 << 20, 2.0), Candidate("b", 3 << 19, 1.0)] for i in range(40)
    } | {
        name: [Candidate("a", 32 * tokens, 2.0), Candidate("b", 36 * tokens, 1.0)]
        for name in ("embedding", "head")
    }
    capacity = smallest_nbytes(menu) + 5_000_000
    table = KnapsackTable(menu, capacity)
    assert table.unit == 1 << 19
    chosen = list(table.solve(capacity).values())
    mixes = [
        (smallest_nbytes(menu) + odd * 4 * tokens + (even << 19), 84.0 - odd - even)
        for odd in range(3)
        for even in range(41)
    ]
    fitting = [mix for mix in mixes if mix[0] <= capacity]
    assert fullest_nbytes(menu, capacity) == max(total for total, _ in fitting)
    assert 84.0 - chosen.count("b") == min(divergence for _, divergence in fitting)
