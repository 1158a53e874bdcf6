"""A search from start to end: limits, Ctrl-C, resuming, and what it says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from bitquilt.allocation.history import History
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter
from bitquilt.allocation.searching import SearchTask, run_search
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import Incumbent
from tests.allocation.synthetic import SEGMENTS, Synthetic
from tests.progress import Recorded

LENGTH = 64 * SEGMENTS + 1
NUMBER = r"[\d.e-]+"


class Measured:
    """The synthetic model behind real measurements."""

    def __init__(self, place, stop_after=None):
        self.model = Synthetic(wrong=0.7)
        self.history = place / "history.jsonl"
        self.meter = Meter(LENGTH)
        history = History(self.history)
        self.measurements = Measurements(self._evaluate, 64, self.meter, history)
        self.task = SearchTask(self.model.space, {"3bit": self.model.capacity}, 0)
        self.said, self.asked, self._stop_after = [], 0, stop_after

    def _evaluate(self, allocations, windows):
        if self._stop_after is not None and self.asked >= self._stop_after:
            raise KeyboardInterrupt
        self.asked += 1
        vectors = [self.model.space.vector(allocation) for allocation in allocations]
        samples = self.model.measure(vectors, windows)
        by_window = samples.reshape(len(allocations), len(windows), SEGMENTS)
        return np.repeat(by_window, 64, axis=2)

    def search(self, method="race", tokens=400 * LENGTH):
        limits = Limits(tokens)
        return run_search(method, self.task, self.measurements, limits, Recorded(lines=self.said))[
            "3bit"
        ]


def test_a_race_beats_the_knapsack_within_its_tokens(tmp_path):
    run = Measured(tmp_path)
    exact = solve(run.model.space, run.model.capacity)
    best = run.search()
    assert run.model.kl(best) < run.model.kl(exact)
    assert 100 * LENGTH < run.meter.tokens <= 400 * LENGTH
    steps = [line for line in run.said if line.startswith("3bit: ")]
    better = (
        r"3bit: after [\d,]+ of at most [\d,]+ tokens, a mix of types of [\d,]+ bytes has KL "
        rf"{NUMBER} nats/token; the best before it has {NUMBER} on the same text"
    )
    assert steps
    assert all(re.fullmatch(better, line) for line in steps)  # no news is not told


def test_it_ends_when_its_tokens_are_spent(tmp_path):
    run = Measured(tmp_path)
    run.search(tokens=60 * LENGTH)
    assert 0 < run.meter.tokens <= 60 * LENGTH
    assert run.said[-1] == "The search has used up its tokens or its time"


def test_no_tokens_no_search(tmp_path):
    run = Measured(tmp_path)
    assert run.search(tokens=0) == solve(run.model.space, run.model.capacity)
    assert run.asked == 0


@pytest.mark.parametrize("stop_after", [0, 3, 6])
def test_stopped_it_keeps_the_best_and_goes_on_later(tmp_path, stop_after):
    stopped = Measured(tmp_path, stop_after)
    kept = stopped.search()
    assert stopped.model.space.nbytes(kept) <= stopped.model.capacity
    assert "continues the search" in stopped.said[-1]
    resumed, undisturbed = Measured(tmp_path), Measured(tmp_path / "other")
    assert resumed.search() == undisturbed.search()
    assert resumed.asked <= undisturbed.asked - stop_after
    assert resumed.meter.tokens == undisturbed.meter.tokens


def test_what_was_measured_before_is_not_told_as_fast_work(tmp_path):
    class Units(Recorded):
        def __init__(self):
            super().__init__()
            self.skipped = 0

        def skip(self, units):
            self.skipped += units

    told = []
    for stop_after in (3, None):
        run, progress = Measured(tmp_path, stop_after), Units()
        run_search("race", run.task, run.measurements, Limits(400 * LENGTH), progress)
        told.append((progress.skipped, sum(progress.steps), run.meter.tokens))
    (skipped, stopped, _), (again, rest, tokens) = told
    assert skipped == 0
    assert again == stopped > 0
    assert again + rest == tokens


class Expected(Recorded):
    """Keeps what further tokens were expected, beside those that were read."""

    def __init__(self):
        super().__init__()
        self.told = []

    def expect(self, further):
        self.told.append((sum(self.steps), further))


def test_a_race_that_is_settled_expects_no_more_tokens(tmp_path):
    run, progress = Measured(tmp_path), Expected()
    run_search("race", run.task, run.measurements, Limits(400 * LENGTH), progress)
    assert run.meter.tokens < 300 * LENGTH
    assert progress.told[-1] == (run.meter.tokens, 0)


def test_a_race_expects_a_round_for_each_rival_as_far_as_its_tokens_go(tmp_path, monkeypatch):
    steps = [(100, None), (250, 2), (600, 9), (700, 0)]

    def incumbents(method, task, measurements, progress):
        for tokens, rivals in steps:
            progress.advance(tokens - measurements.meter.tokens)
            measurements.meter.tokens = tokens
            exact = solve(task.space, run.model.capacity)
            yield Incumbent(run.model.capacity, exact, 1.0, 1.0, rivals)

    monkeypatch.setattr("bitquilt.allocation.searching._incumbents", incumbents)
    run, progress = Measured(tmp_path), Expected()
    run_search("race", run.task, run.measurements, Limits(1000), progress)
    assert progress.told == [(250, 2 * 150), (600, 1000 - 600), (700, 0)]


def test_the_history_says_how_it_went(tmp_path):
    run = Measured(tmp_path)
    best = run.search()
    steps = [json.loads(line) for line in run.history.read_text().splitlines()]
    last = [step for step in steps if "best" in step][-1]
    assert last["best"].split() == list(run.model.space.allocation(best).values())
    assert last["bytes"] == run.model.space.nbytes(best)
    assert last["file"] == "3bit"
    assert 0 < last["tokens"] <= run.meter.tokens


def test_evopress_runs_until_its_tokens_are_spent(tmp_path):
    run = Measured(tmp_path)
    best = run.search("evopress", tokens=3000 * LENGTH)
    assert run.model.space.nbytes(best) <= run.model.capacity
    assert run.meter.tokens > 500 * LENGTH
