"""What is told on the way: one bar or lines, with the share done and the time left."""

from __future__ import annotations

import re
import time

import pytest
from rich.console import Console

from bitquilt.errors import in_shell, named_by
from bitquilt.runtime import progress as progress_module
from bitquilt.runtime.job import ExpectedStage
from bitquilt.runtime.progress import Progress, Silent, clock

EXPECTED = [ExpectedStage("read", 100.0), ExpectedStage("round", 300.0)]


def test_off_a_terminal_a_job_tells_its_share_and_the_time_left(capfd, monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    progress = Progress()
    with progress.job(EXPECTED), progress.stage("Reading text", 10, "read"):
        for _ in range(3):
            progress.advance(1)
            time.sleep(0.07)
    said = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"Reading text: \d+% of all is done, \d+ (s|min) left", said[0])
    assert said[-1] == "Reading text: 0 s"
    assert len(said) >= 3


def test_no_line_comes_twice_in_a_row(capfd, monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.02)
    progress = Progress()
    monkeypatch.setattr(progress, "time_left", lambda: (0.11, 1260.0))
    with progress.job(EXPECTED), progress.stage("Reading text", 10, "read"):
        time.sleep(0.12)
    said = capfd.readouterr().err.splitlines()
    assert said == ["Reading text: 11% of all is done, 21 min left", "Reading text: 0 s"]


def test_options_are_named_as_the_reader_types_them(capfd):
    with named_by(in_shell):
        Progress().say("give --search-tokens=512 for a race")
    assert capfd.readouterr().err == "give --search-tokens 512 for a race\n"


def test_lines_come_no_more_often_than_every_15_s(capfd):
    assert progress_module.LINE_SECONDS == 15
    progress = Progress()
    with progress.job([ExpectedStage("read", 1.0)]):
        for _ in range(3):
            with progress.stage("Reading", 100, "read"):
                progress.advance(50)
    assert capfd.readouterr().err == 3 * "Reading: 0 s\n"


def test_on_a_terminal_there_is_one_bar_with_the_stage_and_the_time_left(capfd, monkeypatch):
    monkeypatch.setattr(progress_module, "BAR_SECONDS", 0.02)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.console = Console(stderr=True, force_terminal=True, width=100)
    with progress.job(EXPECTED), progress.stage("Reading text", 4, "read"):
        progress.advance(1)
        time.sleep(0.3)
    said = capfd.readouterr().err
    assert "Reading text" in said
    assert re.search(r"\d+%", said)
    assert re.search(r"\d+ (s|min) left", said)
    assert "1/4" not in said


def test_a_stage_alone_tells_its_share_whatever_its_units(capfd, monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", -1)
    progress = Progress()
    with progress.stage("Asking", 2e12):
        progress.advance(1e12)
    assert capfd.readouterr().err == "Asking: 50% is done\nAsking: 0 s\n"
    assert progress.time_left() is None


def test_on_a_terminal_the_bar_of_a_stage_alone_is_like_that_of_a_job(capfd, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress()
    progress.console = Console(stderr=True, force_terminal=True, width=100)
    with progress.stage("Asking", 4e12):
        for _ in range(3):
            progress.advance(1e12)
            time.sleep(0.2)
    said = capfd.readouterr().err
    assert "75%" in said
    assert re.search(r"\d+ s left", said)
    assert "/" not in said


def test_a_job_within_a_job_is_part_of_it():
    progress = Silent()
    with progress.job([ExpectedStage("read", 10.0)]), progress.job([ExpectedStage("other", 99.0)]):
        share, left = progress.time_left()
        assert left == pytest.approx(10, abs=1)
        assert share < 0.5
    assert progress.time_left() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (45, "45 s"), (150, "2 min"), (5900, "98 min"), (7500, "2 h 5 min")],
)
def test_time_is_written_for_people(seconds, words):
    assert clock(seconds) == words
