"""Budgets as people write them."""

from bitquilt.allocation.budget import Budget
from bitquilt.targets.layout import Layout


def test_bits_are_of_the_tensors_and_sizes_of_everything_on_disk():
    breakdown = {"tokenizer": 100, "metadata": 20, "norms": 12, "embedding": 300, "codes": 200}
    breakdown |= {"scales": 50, "padding": 8}
    layout = Layout(690, {"a": 552}, 138, breakdown, weights=1000)
    assert layout.bits == (12 + 300 + 200 + 50) * 8 / 1000
    assert layout.bits_on_disk == 690 * 8 / 1000
    assert Budget(bits=4.5).nbytes(1000) == 562  # never more: 562.5 is rounded down
    assert Budget(bits=4.5).capacity(layout) == 562 - 12
    assert Budget(size=600).nbytes(1000) == 600
    assert Budget(size=600).capacity(layout) == 600 - 138
