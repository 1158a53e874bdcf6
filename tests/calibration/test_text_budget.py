"""How much text is read: what a laptop has time for."""

from itertools import pairwise

import pytest

from bitquilt.calibration.text_budget import LEAST_RACED, WINDOW, TextBudget, text_budget
from bitquilt.errors import UserError


@pytest.mark.parametrize("gpu", [0, 24 << 30, 80 << 30])
@pytest.mark.parametrize("parameters", [1e6, 14e6, 135e6, 950e6, 8e9, 70e9])
def test_a_race_is_long_enough_to_learn_or_there_is_none(parameters, gpu):
    races = text_budget(int(parameters), 10_000, gpu).races
    assert races == 0 or races >= LEAST_RACED


def test_large_models_race_on_a_gpu_only():
    assert text_budget(14_000_000, 10_000).races > 0
    assert text_budget(950_000_000, 10_000).races == 0
    assert text_budget(950_000_000, 10_000, 80 << 30).races > 0


def test_no_more_text_for_a_larger_model():
    small, large = vars(text_budget(10_000_000, 10_000)), vars(text_budget(1_000_000_000, 10_000))
    assert all(large[stage] <= small[stage] for stage in small)


def test_a_gpu_reads_a_quarter_of_a_million_tokens_where_its_memory_holds_them():
    assert text_budget(135_000_000, 30 * 576, 80 << 30).calibration * WINDOW >= 262_144
    few = text_budget(8_000_000_000, 32 * 4096, 24 << 30).calibration
    assert 4 * 32 * 4096 * WINDOW * few < 24 << 30  # as 16-bit numbers in half of its memory
    assert 12 <= few < 512
    assert 12 <= text_budget(8_000_000_000, 32 * 4096, 80 << 30).calibration < 512


@pytest.mark.parametrize("gpu", [0, 80 << 30])
@pytest.mark.parametrize("parameters", [1e6, 135e6, 8e9])
def test_more_time_is_never_less_text(parameters, gpu):
    factors = [0.1, 0.5, 1.0, 2.0, 10.0, 400.0]
    budgets = [vars(text_budget(int(parameters), 10_000, gpu, factor)) for factor in factors]
    for fewer, more in pairwise(budgets):
        assert all(fewer[stage] <= more[stage] for stage in fewer)
    assert budgets[-1]["races"] > budgets[2]["races"]


def test_a_stage_that_reads_nothing_is_refused_by_name():
    counts = vars(text_budget(14_000_000, 10_000))
    assert TextBudget(**{**counts, "tuning": 0, "interactions": 0, "races": 0}).races == 0
    for name in ("calibration", "held_out", "search", "selection", "window"):
        with pytest.raises(UserError, match=rf"TextBudget\({name}=0\) is too little; give 1"):
            TextBudget(**{**counts, name: 0})
    with pytest.raises(UserError, match="give 0 or more"):
        TextBudget(**{**counts, "races": -1})
