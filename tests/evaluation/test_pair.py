"""Drafts: counted against speculative decoding that is run token by token, and through engines."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.errors import UserError
from bitquilt.evaluation.pair import draft_gain, kept_a_step, measure_pair
from bitquilt.runtime.progress import Silent
from tests.factories import tiny_checkpoint
from tests.quick import invoke


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 8))
def test_tokens_a_step_are_those_of_speculative_decoding(agreeing, draft):
    written, steps = 0, 0
    while written < len(agreeing):
        for _ in range(draft):
            if written == len(agreeing) or not agreeing[written]:
                break
            written += 1  # a token of the draft is kept
        written += 1  # and the large model says one itself
        steps += 1
    assert kept_a_step(agreeing, draft) == pytest.approx(len(agreeing) / steps)


def test_a_draft_that_is_always_right_gains_what_reading_costs_less():
    gain = draft_gain([[True] * 60] * 2, 4, large=1.0, small=0.1, reading=1.1)
    assert gain.kept == pytest.approx(5)
    assert gain.speedup == pytest.approx(5 / 1.5)
    never = draft_gain([[False] * 60], 4, large=1.0, small=0.1, reading=1.1)
    assert never.speedup == pytest.approx(1 / 1.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("pair"), "llama", layers=1)


def test_a_model_agrees_with_its_copy(model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    found = measure_pair(model, copy, answers=2, length=12, progress=Silent())
    assert found.agreement == 1.0
    assert found.tokens <= 2 * 12
    assert [gain.draft for gain in found.gains] == [1, 2, 3, 4, 6, 8]
    assert found.gains[0].kept == pytest.approx(2, rel=0.2)  # the last step may be cut
    assert found.best.speedup == max(gain.speedup for gain in found.gains)


def test_models_that_read_other_tokens_are_refused(model, capfd):
    with pytest.raises(
        UserError, match=r"cannot draft for .*: the two split .* into different tokens"
    ):
        measure_pair("demo", model, answers=1, length=8, progress=Silent())
    assert invoke("pair", "demo", "nowhere.gguf") == 2
    assert "nowhere.gguf" in capfd.readouterr().err
