"""A history: what was measured is found again, whatever an interrupted run left behind."""

from __future__ import annotations

import json

import pytest

from bitquilt.allocation.history import History, history_path, latest_histories, read_history


@pytest.fixture
def path(tmp_path):
    return history_path(tmp_path, "gguf", "16")


def test_what_is_added_is_known_now_and_next_time(path):
    first = History(path)
    assert ("Q4_K Q6_K", 3) not in first
    first.add("Q4_K Q6_K", [3, 5], [[0.25, 0.5], [1.0, 2.0]], {"tokens": 7})
    for history in (first, History(path)):
        assert ("Q4_K Q6_K", 3) in history
        assert ("Q4_K Q6_K", 4) not in history
        assert history.samples("Q4_K Q6_K", 5) == [1.0, 2.0]


def test_a_number_read_back_is_the_number_that_was_used(path):
    first = History(path)
    first.add("Q4_K", [0], [[1 / 3, 2e-7 / 3]], {})
    assert History(path).samples("Q4_K", 0) == first.samples("Q4_K", 0) == [0.333333, 6.66667e-8]


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(path):
    first = History(path)
    first.write({"best": "Q4_K"})
    first.write({"best": "Q6_K"})
    text = path.read_text()
    path.write_text(text[:-8])
    History(path).write({"best": "Q8_0"})
    assert read_history(path) == [{"best": "Q4_K"}, {"best": "Q8_0"}]


def test_nothing_is_written_before_there_is_something(path):
    assert read_history(path) == []
    History(path)
    assert not path.parent.exists()


def test_each_target_has_the_history_that_was_written_to_last(tmp_path):
    for target, text in (("gguf", "16"), ("mlx", "16"), ("gguf", "64")):
        History(history_path(tmp_path, target, text)).write({})
    assert latest_histories(tmp_path).keys() == {"gguf", "mlx"}


def test_the_lines_are_json(path):
    History(path).add("Q4_K", [2], [[0.5]], {"tokens": 64, "seconds": 1.5})
    assert json.loads(path.read_text()) == {
        "mix": "Q4_K",
        "windows": [2],
        "kl": [[0.5]],
        "tokens": 64,
        "seconds": 1.5,
    }
