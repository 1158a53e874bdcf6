"""The time that is left of a job: told before, corrected on the way."""

from __future__ import annotations

from random import Random

import pytest

from bitquilt.runtime.job import ExpectedStage, Job


def job(**seconds: float) -> Job:
    return Job([ExpectedStage(kind, taken) for kind, taken in seconds.items()], 0.0)


def test_before_the_first_stage_the_forecast_is_all_there_is():
    assert job(read=10, round=30).left(0.0) == pytest.approx(40)


def test_a_stage_that_keeps_its_time_leaves_the_others():
    running = job(read=10, round=30)
    running.begin("read", 2, 0.0)
    running.advance(1, 5.0)
    assert running.left(5.0) == pytest.approx(35)
    assert running.share(5.0) == pytest.approx(5 / 40)
    running.end(10.0)
    assert running.left(10.0) == pytest.approx(30)


def test_on_a_machine_half_as_fast_everything_takes_twice_as_long():
    running = job(read=100, round=300)
    running.begin("read", 10, 0.0)
    for step in range(1, 11):
        running.advance(1, 20.0 * step)
    running.end(200.0)
    running.begin("round", 10, 200.0)
    assert running.left(200.0) == pytest.approx(600, rel=0.15)
    running.advance(5, 500.0)
    assert running.left(500.0) == pytest.approx(300, rel=0.1)


def test_an_error_says_most_of_stages_of_the_same_kind():
    running = Job([ExpectedStage(kind, 100.0) for kind in ("a", "b", "a", "b")], 0.0)
    for kind, start, end in (("a", 0.0, 300.0), ("b", 300.0, 400.0)):
        running.begin(kind, 1, start)
        running.advance(1, end)
        running.end(end)
    assert running.left(400.0) == pytest.approx(300 + 100, rel=0.1)


def test_between_two_advances_time_passes_but_never_runs_out():
    running = job(check=10)
    running.begin("check", 1, 0.0)
    assert running.left(4.0) == pytest.approx(6)
    assert 0 < running.left(12.0) < 2
    assert 0 < running.left(60.0) < 2


def test_stages_that_are_not_needed_cost_nothing():
    running = job(read=10, search=1000, write=5)
    running.begin("read", 1, 0.0)
    running.end(0.1)  # an earlier run has read it: that says nothing of this machine
    running.begin("write", 1, 0.1)
    assert running.left(0.1) == pytest.approx(5)


def test_an_error_says_more_of_stages_that_are_alike():
    stages = [("round", "r"), ("read", "p"), ("polish", "r"), ("check", "p")]
    running = Job([ExpectedStage(kind, 100.0, like) for kind, like in stages], 0.0)
    for kind, start, end in (("round", 0.0, 300.0), ("read", 300.0, 400.0)):
        running.begin(kind, 1, start)
        running.advance(1, end)
        running.end(end)
    assert running.left(400.0) == pytest.approx(300 + 100, rel=0.1)
    running.begin("polish", 1, 400.0)
    assert running.left(400.0) > 350


def test_a_search_that_is_settled_early_does_not_make_the_machine_fast():
    running = job(search=100, write=50)
    running.begin("search", 100, 0.0)
    running.advance(40, 40.0)
    running.end(40.0)
    assert running.left(40.0) == pytest.approx(50, rel=0.05)


def test_a_stage_that_nobody_expected_is_told_by_its_own_speed():
    running = job(write=5)
    running.begin("surprise", 10, 0.0)
    running.advance(2, 4.0)
    assert running.left(4.0) == pytest.approx(16 + 5, rel=0.05)
    running.end(20.0)
    assert running.left(20.0) == pytest.approx(5)


def test_a_stage_within_another_takes_none_of_its_time():
    running = job(text=10, search=40, write=5)
    running.begin("search", 4, 0.0)
    running.advance(1, 10.0)
    running.begin("text", 1, 10.0)
    assert running.left(10.0) == pytest.approx(30 + 5, rel=0.05)  # it came late, and is not counted
    running.end(50.0)
    assert running.left(50.0) == pytest.approx(30 + 5, rel=0.05)
    running.advance(1, 60.0)
    assert running.left(60.0) == pytest.approx(20 + 5, rel=0.05)


def test_the_share_is_that_of_the_whole_job_with_what_earlier_runs_did():
    running = Job([ExpectedStage("round", 60.0)], 0.0, before=40.0)
    assert running.share(0.0) == pytest.approx(0.4)
    running.begin("round", 60, 0.0)
    running.advance(30, 30.0)
    assert running.share(30.0) == pytest.approx(0.7)


@pytest.mark.parametrize("begun", [True, False])
def test_a_stage_that_has_nothing_left_to_do_counts_as_done(begun):
    running = job(read=40, write=60)
    if begun:
        running.begin("read", 1, 0.0)
        running.end(0.0)
    running.begin("write", 1, 0.0)
    assert running.share(0.0) == pytest.approx(0.4)
    assert running.left(0.0) == pytest.approx(60)


def test_units_that_an_earlier_run_did_count_and_do_not_make_the_machine_fast():
    running = job(search=100)
    running.begin("search", 1000, 0.0)
    running.skip(600, 1.0)
    assert running.left(1.0) == pytest.approx(40, rel=0.05)
    assert running.share(1.0) == pytest.approx(0.6, abs=0.02)
    running.advance(200, 21.0)
    assert running.left(21.0) == pytest.approx(20, rel=0.05)


def test_a_stage_that_turns_out_longer_takes_longer_and_the_share_stays():
    running = job(search=100)
    running.begin("search", 1000, 0.0)
    running.advance(500, 50.0)
    before = running.share(50.0)
    running.expect(1500, 50.0)
    assert running.left(50.0) == pytest.approx(150, rel=0.05)
    assert running.share(50.0) == before == pytest.approx(0.5)
    running.expect(100, 50.0)
    assert running.left(50.0) == pytest.approx(10, rel=0.05)
    assert running.share(50.0) == pytest.approx(5 / 6, rel=0.05)


def test_the_share_never_decreases():
    running = job(read=10, write=10)
    running.begin("read", 10, 0.0)
    running.advance(9, 9.0)
    before = running.share(9.0)
    running.begin("surprise", 10, 9.0)
    running.advance(1, 29.0)
    assert running.left(29.0) > 100
    assert running.share(29.0) >= before


STAGES = {"calibrate": 95, "round": 45, "interactions": 77, "read": 58, "search": 150,
          "select": 53, "held-out": 45, "polish": 45, "check": 68}  # fmt: skip
"""Seconds that the stages of the demo model took, on a busy machine."""


@pytest.mark.parametrize("slower", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("seed", range(5))
def test_from_a_quarter_on_the_time_left_is_within_a_quarter(slower, seed):
    """The machine is faster or slower than it seemed, and each stage off by up to 15 % more."""
    random = Random(seed)
    running = job(**STAGES)
    takes = {name: s * slower * random.uniform(0.85, 1.15) for name, s in STAGES.items()}
    whole, now, told = sum(takes.values()), 0.0, []
    for name, seconds in takes.items():
        running.begin(name, 20, now)
        for _ in range(20):
            now += seconds / 20
            running.advance(1, now)
            told.append((now, running.left(now)))
        running.end(now)
    late = [(whole - at, left) for at, left in told if 0.25 * whole < at < 0.97 * whole]
    assert len(late) > 100
    assert all(left == pytest.approx(true, rel=0.25) for true, left in late)
