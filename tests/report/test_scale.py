"""Places and round numbers along axes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.report.scale import Linear, Log, log_span, span

SIZES = st.floats(1e-3, 1e6)


def test_ends_go_to_ends():
    assert Linear(2, 4, 10, 110)(3) == 60
    assert Log(0.01, 1, 100, 0)(0.1) == 50


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(7.2, 8.7, [7.5, 8.0, 8.5]), (0, 100, [0, 20, 40, 60, 80, 100]), (0.7, 0.9, [0.7, 0.75])],
)
def test_linear_ticks_are_round(low, high, ticks):
    assert Linear(low, high, 0, 1).ticks()[: len(ticks)] == pytest.approx(ticks)


def test_logarithmic_ticks_thin_out_over_many_powers():
    assert Log(0.015, 0.3, 0, 1).ticks() == [0.02, 0.05, 0.1, 0.2]
    assert Log(1e-6, 1, 0, 1).ticks() == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]


@given(st.lists(SIZES, min_size=1, max_size=5))
def test_axes_hold_all_values_and_have_ticks(values):
    for ends, scale in ((span(values), Linear), (log_span(values), Log)):
        low, high = ends
        assert low <= min(values) < high
        assert high >= max(values) > low
        ticks = scale(low, high, 0, 1).ticks()
        assert 1 <= len(ticks) <= 24
        assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
