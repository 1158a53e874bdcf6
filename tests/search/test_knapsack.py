"""The table against brute force over every assignment."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.errors import UserError
from bitquilt.search.knapsack import Choice, Table, fullest, largest, smallest

sizes = st.integers(1, 40).map(lambda n: 32 * n)
menus = st.lists(
    st.lists(st.tuples(sizes, st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=5
).map(
    lambda rows: {
        f"m{i}": [Choice(f"g{j}", nbytes, cost) for j, (nbytes, cost) in enumerate(row)]
        for i, row in enumerate(rows)
    }
)


def brute_force(menu, capacity):
    """(total, divergence) of the best mix among the largest that fit."""
    mixes = [
        (sum(c.nbytes for c in mix), sum(c.divergence for c in mix))
        for mix in product(*menu.values())
    ]
    fitting = [mix for mix in mixes if mix[0] <= capacity]
    total = max(total for total, _ in fitting)
    return total, min(divergence for t, divergence in fitting if t == total)


@given(menus, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_equals_brute_force(menu, share):
    capacity = int(smallest(menu) + share * (largest(menu) - smallest(menu)))
    assignment = Table(menu, largest(menu)).solve(capacity)
    chosen = [next(c for c in menu[m] if c.grid == g) for m, g in assignment.items()]
    total, divergence = brute_force(menu, capacity)
    assert sum(c.nbytes for c in chosen) == total == fullest(menu, capacity)
    assert sum(c.divergence for c in chosen) == pytest.approx(divergence)


def test_total_depends_on_sizes_alone():
    sizes = [[96, 160, 224], [320, 480], [64, 128, 512]]

    def menu(sign):
        return {
            f"m{i}": [Choice(f"g{j}", n, sign * n % 7 + 1.0) for j, n in enumerate(row)]
            for i, row in enumerate(sizes)
        }

    for capacity in range(480, 1217, 32):
        totals = set()
        for sign in (1, -1):
            assignment = Table(menu(sign), capacity).solve(capacity)
            totals.add(
                sum(c.nbytes for m, g in assignment.items() for c in menu(sign)[m] if c.grid == g)
            )
        assert len(totals) == 1


def test_coarse_unit_never_exceeds_the_capacity(monkeypatch):
    monkeypatch.setattr("bitquilt.search.knapsack.MOST_UNITS", 100)
    menu = {f"m{i}": [Choice("a", 33, 2.0), Choice("b", 64 + i, 1.0)] for i in range(6)}
    assignment = Table(menu, 1000).solve(330)
    assert sum(c.nbytes for m, g in assignment.items() for c in menu[m] if c.grid == g) <= 330


def test_below_the_smallest_mix_names_it():
    with pytest.raises(UserError, match="smallest has 160"):
        Table({"m": [Choice("g", 160, 1.0)]}, 128)


def test_odd_embedding_and_head_do_not_shrink_the_unit():
    """A vocabulary of 151,669 has no divisor with a block's matrices; sizes stay exact."""
    tokens = 151_669
    menu = {f"m{i}": [Choice("a", 1 << 20, 2.0), Choice("b", 3 << 19, 1.0)] for i in range(40)} | {
        name: [Choice("a", 32 * tokens, 2.0), Choice("b", 36 * tokens, 1.0)]
        for name in ("embedding", "head")
    }
    capacity = smallest(menu) + 5_000_000
    table = Table(menu, capacity)
    assert table.unit == 1 << 19
    assignment = table.solve(capacity)
    sizes = [next(c.nbytes for c in menu[m] if c.grid == g) for m, g in assignment.items()]
    assert sum(sizes) == fullest(menu, capacity)
    totals = [
        smallest(menu) + (odd * 4 * tokens) + (even << 19) for odd in range(3) for even in range(41)
    ]
    assert sum(sizes) == max(total for total in totals if total <= capacity)
