"""A meter counts tokens, learns what a window takes, and refuses what goes beyond the limits."""

from __future__ import annotations

from contextlib import suppress

import pytest

from bitquilt.allocation import meter as own
from bitquilt.allocation.meter import Limits, Meter, SpentError
from tests.clock import set_clock


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    set_clock(monkeypatch, own, lambda: now[0])
    return now


def test_what_is_refused_is_not_counted():
    meter = Meter(64)
    meter.limit(Limits(tokens=200))
    meter.charge(3, 3)
    with pytest.raises(SpentError):
        meter.charge(1, 1)
    assert meter.tokens == 192


def test_limits_count_from_now_on():
    meter = Meter(64)
    meter.charge(5, 5)
    meter.limit(Limits(tokens=64))
    meter.charge(1, 1)
    assert meter.tokens == 6 * 64


def test_time_is_refused_before_it_is_spent(clock):
    meter = Meter(64)
    meter.limit(Limits(seconds=25.0))
    with meter.measuring(2):
        clock[0] += 10.0
    meter.charge(9, 3)
    with pytest.raises(SpentError):
        meter.charge(4, 4)
    meter.charge(9, 0)  # what is remembered takes no time
    assert meter.spent == {"tokens": 18 * 64, "seconds": 10.0}


def test_a_measurement_that_failed_says_nothing_about_the_pace(clock):
    meter = Meter(64)
    meter.limit(Limits(seconds=5.0))
    with suppress(KeyboardInterrupt), meter.measuring(1):
        clock[0] += 4.0
        raise KeyboardInterrupt
    meter.charge(1, 1)


def test_progress_tells_tokens_and_leaves_time_to_the_bar():
    meter = Meter(100)
    meter.limit(Limits(tokens=1000, seconds=90.0))
    meter.charge(5, 0)
    assert meter.progress == "after 500 of at most 1,000 tokens"
