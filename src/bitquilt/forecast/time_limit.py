"""How much text a run reads: as much as the model's size allows, or as a limit of time does.

With ``--time`` the stages that gain by more text, which are calibration, what matrices cost
together and the race, read as many times what they usually do as the forecast of the whole run lets
them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from bitquilt.allocation.allocate import affordable_search
from bitquilt.allocation.plan import Plan
from bitquilt.calibration.text import budget_for
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.config import AllocationConfig
from bitquilt.errors import UserError
from bitquilt.forecast.machine import machine_speed
from bitquilt.forecast.stages import StageSeconds
from bitquilt.forecast.work import RunWork
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.durations import parse_duration
from bitquilt.runtime.files import read_json
from bitquilt.runtime.progress import clock

FACTORS = tuple(2.0 ** (n / 8) for n in range(-32, 65))
"""How many times the usual text can be read."""


def budget_of(
    checkpoint: Checkpoint, plans: Sequence[Plan], config: AllocationConfig
) -> TextBudget:
    """Return how much text each stage reads, on the device that is computed on.

    Raises:
        UserError: the run takes longer than it may with the least text.
    """
    if config.text_budget is not None:
        return config.text_budget
    if config.time is None:
        return budget_for(checkpoint)
    limit, speed = parse_duration(config.time, "--time"), machine_speed(checkpoint)

    def budget(factor: float) -> TextBudget:
        return _as_begun(budget_for(checkpoint, factor), checkpoint, config)

    def seconds(factor: float) -> float:
        work = replace(_work(checkpoint, plans, config, budget(factor)), afresh=True)
        return sum(stage.seconds for stage in StageSeconds(work, speed).stages())

    fitting = bisect_right(FACTORS, limit, key=seconds)
    if not fitting:
        least = seconds(FACTORS[0])
        raise UserError(
            f"--time={config.time} is too short: with the least text, {checkpoint.name} takes "
            f"about {clock(least)} on this machine; give --time={_minutes(least)}m or more"
        )
    return budget(FACTORS[fitting - 1])


def planned_work(
    checkpoint: Checkpoint, plans: Sequence[Plan], config: AllocationConfig
) -> RunWork:
    """Return a run's work before its text is read, which may lack one kind of the held-out text."""
    return _work(checkpoint, plans, config, budget_of(checkpoint, plans, config))


def _work(
    checkpoint: Checkpoint, plans: Sequence[Plan], config: AllocationConfig, budget: TextBudget
) -> RunWork:
    return RunWork(
        checkpoint=checkpoint,
        plans=list(plans),
        config=config,
        budget=budget,
        search=affordable_search(config.search, budget),
        closing=2 * budget.held_out,
    )


def _as_begun(budget: TextBudget, checkpoint: Checkpoint, config: AllocationConfig) -> TextBudget:
    """Keep to the calibration text of a run that goes on: its statistics are of that."""
    file = config.work_directory(checkpoint.name) / "settings.json"
    if not file.exists():
        return budget
    windows = read_json(file).get("windows", {})
    return replace(budget, calibration=windows.get("calibration", budget.calibration))


def _minutes(seconds: float) -> int:
    """Round up, with the tenth that a forecast may err by."""
    return int(1.1 * seconds / 60) + 1
