"""Races: the clearly beaten leave, the rest read on; differences are paired."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation.racing import Difference, by_segment, contenders, race

A, B, C = (0,), (1,), (2,)


def text(windows, segments=8):
    """Noise that all mixes share, much larger than their differences."""
    return np.random.default_rng(0).gamma(2.0, 1.0, (windows, segments))


def measured(levels, noise, calls=None):
    """A measure of mixes that have these KLs on average."""
    shared = text(64)
    own = {mix: np.random.default_rng(1 + mix[0]).normal(0, noise, shared.shape) for mix in levels}

    def measure(mixes, windows):
        if calls is not None:
            calls.append((list(mixes), list(windows)))
        return np.array([(shared + own[m] + levels[m])[list(windows)].ravel() for m in mixes])

    return measure


def test_shared_noise_cancels():
    measure = measured({A: 1.0, B: 1.01}, noise=0.001)
    a, b = measure([A, B], range(4))
    difference = Difference.of(b, a)
    assert difference.mean == pytest.approx(0.01, abs=0.001)
    assert difference.error < 0.0005
    assert difference.low < difference.mean < difference.high


def test_contenders_are_best_first_and_the_clearly_beaten_are_gone():
    measure = measured({A: 1.02, B: 1.0, C: 1.5}, noise=0.1)
    assert contenders(measure([A, B, C], range(8))) == [1, 0]


def test_one_sample_beats_nobody():
    assert contenders(np.array([[2.0], [1.0]])) == [1, 0]


def test_a_race_reads_on_with_those_that_may_win():
    calls = []
    measure = measured({A: 1.0, B: 1.005, C: 2.0}, noise=0.05, calls=calls)
    finished = race(C, [B, A], measure, [[0, 1], [2, 3], [4, 5, 6, 7]])
    assert next(iter(finished)) == A
    assert C in finished  # the best so far is measured to the end
    assert [windows for _, windows in calls] == [[0, 1], [0, 1, 2, 3], list(range(8))]
    assert len(finished[A]) == 64


def test_a_race_ends_when_the_best_has_beaten_all():
    calls = []
    measure = measured({A: 1.0, B: 2.0}, noise=0.01, calls=calls)
    assert list(race(A, [B], measure, [[0], [1], [2]])) == [A]
    assert len(calls) == 1


def test_segments_are_means_of_neighbouring_tokens():
    kl = np.arange(2 * 3 * 511, dtype=np.float32).reshape(2, 3, 511)
    found = by_segment(kl)
    assert found.shape == (2, 3, 8)
    assert found[1, 2, 0] == pytest.approx(kl[1, 2, :64].mean())
    assert by_segment(kl[:, :, :31]).shape == (2, 3, 1)
