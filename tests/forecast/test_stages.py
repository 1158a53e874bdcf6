"""Seconds of stages: what wide inputs and further GPUs change, against counted products."""

from dataclasses import replace

import pytest

from bitquilt.allocation.plan import make_plans, requests
from bitquilt.config import QuantizeConfig
from bitquilt.forecast import stages
from bitquilt.forecast.machine import MachineSpeed
from bitquilt.forecast.stages import StageSeconds
from bitquilt.forecast.time_limit import planned_work
from bitquilt.forecast.work import RunWork
from bitquilt.models import open_checkpoint
from bitquilt.targets import parse_targets
from tests.factories import tiny_checkpoint
from tests.quick import QUICK

SPEED = MachineSpeed(
    block=1.0, fast_block=1.0, head=0.0, rounding=1.0, threads=1, on_gpu=True, gpus=1
)


@pytest.fixture
def work_of(tmp_path, monkeypatch):
    monkeypatch.setattr(RunWork, "estimates", True)
    monkeypatch.setattr(RunWork, "two_passes", True)
    monkeypatch.setattr(RunWork, "selects", False)

    def made(intermediate):
        place = tmp_path / str(intermediate)
        checkpoint = open_checkpoint(tiny_checkpoint(place, "llama", intermediate=intermediate))
        config = QuantizeConfig(**QUICK, bits=4.5, output=place)
        plans, _ = make_plans(checkpoint, requests(config), parse_targets("gguf"))
        return planned_work(checkpoint, plans, config)

    return made


def seconds_of(work, speed):
    first, second, *_ = StageSeconds(work, speed).stages()
    assert (first.kind, second.kind) == ("calibration", "rounding")
    return first.seconds, second.seconds


def test_moments_of_wide_inputs_are_counted(work_of, monkeypatch):
    """A token takes 2RC operations forward through a matrix, and C² for the moment of an input."""
    monkeypatch.setattr(stages, "GPU_ROUNDS", 0.0)
    monkeypatch.setattr(stages, "GPU_FACTORIZES", 0.0)
    read = {}
    for intermediate in (512, 2048):
        work = work_of(intermediate)
        started = stages.STARTING + stages.GPU_STARTS
        read[intermediate] = seconds_of(work, SPEED)[0] - started
        tokens, matrices = work.tokens["calibration"], work.checkpoint.matrices
        own = [shape for module, shape in matrices.items() if ".layers.0." in module]
        weights = sum(rows * columns for rows, columns in own)
        moments = 2 * 256**2 + 256**2 + intermediate**2  # of q, k and v, of o, of gate and up
        expected = stages.THERE_AND_BACK + stages.MOMENTS * moments / weights
        assert read[intermediate] == pytest.approx(tokens * 2 * expected, rel=0.01)
    assert read[2048] > 1.3 * read[512]


def test_factors_of_wide_inputs_are_counted(work_of, monkeypatch):
    work = work_of(512)
    with_them = seconds_of(work, SPEED)
    monkeypatch.setattr(stages, "GPU_FACTORIZES", 0.0)
    for own, without in zip(with_them, seconds_of(work, SPEED), strict=True):
        assert own - without == pytest.approx(2 * 5e-14 * (3 * 256**3 + 512**3), rel=1e-3)


def test_two_gpus_share_all_but_tables(work_of, monkeypatch):
    work, two = work_of(512), replace(SPEED, gpus=2)
    alone, shared = seconds_of(work, SPEED), seconds_of(work, two)
    for one, half in zip(alone, shared, strict=True):
        assert 0.5 * one < half < 0.75 * one
    monkeypatch.setattr(RunWork, "two_passes", False)
    alone, shared = (StageSeconds(work, speed).stages() for speed in (SPEED, two))
    assert [one.seconds for one in alone] == [one.seconds for one in shared]
