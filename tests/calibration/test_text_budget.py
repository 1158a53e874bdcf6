"""How much text is read: what a laptop has time for."""

import pytest

from bitquilt.calibration.text_budget import LEAST_RACED, WINDOW, text_budget


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
