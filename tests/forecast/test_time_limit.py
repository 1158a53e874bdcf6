"""How much a limit of time lets a run read."""

from __future__ import annotations

import json

import pytest

import bitquilt
from bitquilt.allocation.plan import make_plans, requests
from bitquilt.config import QuantizeConfig
from bitquilt.errors import UserError
from bitquilt.forecast import time_limit
from bitquilt.forecast.time_limit import budget_of
from bitquilt.models import open_checkpoint
from bitquilt.runtime.job import ExpectedStage
from bitquilt.targets import parse_targets
from tests.factories import tiny_checkpoint


class TwoSecondsForEachWindow:
    """Stands for the forecast."""

    def __init__(self, work, speed):
        self._budget = work.budget

    def stages(self):
        budget = self._budget
        yield ExpectedStage("calibration", 2.0 * budget.calibration, "passes")
        yield ExpectedStage("search", 2.0 * budget.races, "passes")


@pytest.fixture
def budget(tmp_path, monkeypatch):
    monkeypatch.setattr(time_limit, "StageSeconds", TwoSecondsForEachWindow)
    monkeypatch.setattr(time_limit, "machine_speed", lambda _: None)
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / "model", "qwen3"))

    def found(time):
        config = QuantizeConfig(bits=4.5, time=time, output=tmp_path)
        plans, _ = make_plans(checkpoint, requests(config), parse_targets(config.to))
        return budget_of(checkpoint, plans, config)

    return found


def test_a_run_reads_what_it_has_time_for(budget):
    usual = budget(None)
    assert budget("100h").races > 10 * usual.races
    for minutes in (20, 60, 300):
        own = budget(f"{minutes}m")
        seconds = 2 * (own.calibration + own.races)
        assert 0.85 * 60 * minutes < seconds <= 60 * minutes
        assert own.held_out == usual.held_out


def test_too_little_time_is_refused_with_what_would_do(budget):
    with pytest.raises(UserError, match="time='3s' is too short: with the least text"):
        budget("3s")


def test_a_run_that_goes_on_keeps_its_calibration_text(budget, tmp_path):
    work = next(tmp_path.glob("model")).parent / "tiny-qwen3.work"
    work.mkdir()
    (work / "settings.json").write_text(json.dumps({"windows": {"calibration": 17}}))
    assert budget("60m").calibration == 17


def test_the_whole_run_is_told_within_the_limit(tmp_path):
    model = tiny_checkpoint(tmp_path / "model", "qwen3")
    usual = bitquilt.estimate(model, bits=4.5, output=tmp_path)
    limit = 4 * usual.seconds
    found = bitquilt.estimate(model, bits=4.5, output=tmp_path, time=f"{limit:.0f}s")
    assert usual.seconds < found.seconds < 1.5 * limit  # the machine is measured twice
    assert found.tokens["search"] > usual.tokens["search"]
