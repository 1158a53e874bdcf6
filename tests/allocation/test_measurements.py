"""Measurements: counted once, remembered, limited, and found again by the next search."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bitquilt.allocation import meter
from bitquilt.allocation.history import History
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter, SpentError
from tests.clock import set_clock

A, B = {"m": "Q4_K", "n": "Q4_K"}, {"m": "Q6_K", "n": "Q4_K"}
LENGTH = 129


class Counted:
    """An evaluator that says what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, mixes, windows):
        self.asked.append(([mix["m"] for mix in mixes], list(windows)))
        rng = np.random.default_rng(0)
        shape = (len(windows), LENGTH - 1)
        noise = {w: rng.random(shape[1]) for w in range(10)}
        level = {"Q4_K": 1.0, "Q6_K": 0.1}
        return np.array([[level[m["m"]] + noise[w] for w in windows] for m in mixes], np.float32)


def begun(evaluate, history):
    """Measurements of ten windows, with the history of a file."""
    return Measurements(evaluate, 10, Meter(LENGTH), History(history))


@pytest.fixture
def history(tmp_path):
    return tmp_path / "search" / "history.jsonl"


def test_only_what_is_new_is_measured(history):
    evaluate = Counted()
    measured = begun(evaluate, history)
    first = measured.samples([A, B], [0, 1])
    assert first.shape == (2, 4)
    again = measured.samples([B, A], [1, 0, 2])
    assert evaluate.asked == [(["Q4_K", "Q6_K"], [0, 1]), (["Q6_K", "Q4_K"], [2])]
    np.testing.assert_array_equal(again[1, [2, 3, 0, 1]], first[0])
    assert measured.meter.tokens == 6 * LENGTH


def test_the_next_search_finds_it_and_counts_it_again(history):
    first = begun(Counted(), history)
    samples = first.samples([A, B], [0, 1])
    evaluate = Counted()
    second = begun(evaluate, history)
    np.testing.assert_array_equal(second.samples([A, B], [0, 1]), samples)
    assert evaluate.asked == []
    assert second.meter.tokens == first.meter.tokens == 4 * LENGTH


def test_a_line_cut_short_is_measured_again(history):
    begun(Counted(), history).samples([A, B], [0, 1])
    text = history.read_text()
    history.write_text(text[: len(text) - 40])
    evaluate = Counted()
    measured = begun(evaluate, history)
    measured.samples([A, B], [0, 1])
    assert evaluate.asked == [(["Q6_K"], [0, 1])]
    again = Counted()
    begun(again, history).samples([A, B], [0, 1])
    assert again.asked == []


def test_tokens_are_limited_from_now_on(history):
    measured = begun(Counted(), history)
    measured.samples([A], range(5))
    measured.meter.limit(Limits(tokens=3 * LENGTH))
    measured.samples([A], range(5))  # costs nothing
    measured.samples([B], range(3))
    with pytest.raises(SpentError):
        measured.samples([B], range(4))
    assert measured.meter.tokens == 8 * LENGTH


def test_time_is_limited_by_what_the_next_measurement_will_take(history, monkeypatch):
    clock = [0.0]
    set_clock(monkeypatch, meter, lambda: clock[0])
    evaluate = Counted()

    def slow(mixes, windows):
        clock[0] += 10.0 * len(mixes) * len(windows)
        return evaluate(mixes, windows)

    measured = begun(slow, history)
    measured.meter.limit(Limits(seconds=35.0))
    measured.samples([A], [0])
    measured.samples([A, B], [0])
    with pytest.raises(SpentError):
        measured.samples([A, B], [1])
    assert clock[0] == 20.0


def test_the_history_is_json_lines(history, monkeypatch):
    clock = iter([100.0, *[112.34] * 9])
    set_clock(monkeypatch, meter, lambda: next(clock))
    measured = begun(Counted(), history)
    measured.samples([A], [0, 3])
    measured.history.write({"best": "Q4_K Q4_K"} | measured.meter.spent)
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert lines[0]["mix"] == "Q4_K Q4_K"
    assert lines[0]["windows"] == [0, 3]
    assert [len(window) for window in lines[0]["kl"]] == [2, 2]
    assert lines[1] == {"best": "Q4_K Q4_K", "tokens": 2 * LENGTH, "seconds": 12.3}
    assert math.isinf(Limits().tokens)
