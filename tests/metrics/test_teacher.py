"""Closing figures: each kind of text by itself, the headline on unlike text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitquilt.metrics.kl import TokenFigures
from bitquilt.metrics.teacher import ClosingTeacher, Teacher


def closing(unlike: int) -> ClosingTeacher:
    """Six windows of eight tokens."""
    tokens = torch.zeros(6, 8, dtype=torch.long)
    return ClosingTeacher(Teacher(tokens, torch.zeros(6, 8, 4), torch.ones(16, 4)), unlike)


def found() -> TokenFigures:
    """The KL of a token is the number of its window."""
    kl = np.repeat(np.arange(6, dtype=np.float32)[:, None], 7, 1)
    return TokenFigures(kl, np.ones_like(kl), np.ones_like(kl), np.ones_like(kl))


def test_each_kind_of_text_has_its_own_figures():
    figures = closing(2).figures(found(), "torch")
    assert list(figures.kinds) == ["unlike", "like"]
    assert figures.unlike is not None
    assert figures.like is not None
    assert figures.unlike.kl.mean == pytest.approx(0.5)
    assert figures.like.kl.mean == pytest.approx(3.5)
    assert (figures.unlike.tokens, figures.like.tokens) == (2 * 7, 4 * 7)
    assert figures.headline is figures.unlike


@pytest.mark.parametrize(("unlike", "kind"), [(0, "like"), (6, "unlike")])
def test_a_kind_that_was_not_read_has_none(unlike, kind):
    figures = closing(unlike).figures(found(), "torch")
    assert list(figures.kinds) == [kind]
    assert figures.headline.kl.mean == pytest.approx(2.5)


def test_the_original_is_no_distance_from_itself_and_has_a_perplexity_on_each_kind():
    figures = closing(2).original_figures()
    for one in figures.kinds.values():
        assert one.kl.mean == 0.0
        assert one.perplexity.mean == pytest.approx(16.0)  # all 16 tokens are as likely
