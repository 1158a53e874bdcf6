"""Scores: what the bank predicts, and the first guess before there is a bank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bitquilt.allocation import sensitivity
from bitquilt.allocation.space import Candidate
from tests.shapes import shaped_checkpoint

V0, V1 = (f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1))
SETS = {
    "model.embed_tokens": [Candidate("Q4_K", 100, 0.0), Candidate("Q6_K", 150, 0.0)],
    V0: [Candidate("Q3_K", 10, 0.0), Candidate("Q4_K", 12, 0.0), Candidate("Q6_K", 16, 0.0)],
    V1: [Candidate("Q4_K", 12, 0.0), Candidate("Q8_0", 20, 0.0)],
}


def test_blocks():
    assert sensitivity.block("model.embed_tokens") == "model.embed_tokens"
    assert (sensitivity.block(V0), sensitivity.block(V1)) == ("0", "1")


def test_scores_are_what_the_bank_predicts():
    scores = {module: {c.qtype: 0.1 * c.nbytes for c in found} for module, found in SETS.items()}
    scored = sensitivity.predicted(SimpleNamespace(scores=scores.__getitem__), SETS)
    assert [c.predicted_kl for c in scored[V0]] == pytest.approx([1.0, 1.2, 1.6])
    assert [(c.qtype, c.nbytes) for c in scored[V1]] == [("Q4_K", 12), ("Q8_0", 20)]


def test_the_first_guess_prefers_more_bits_and_larger_matrices():
    checkpoint = shaped_checkpoint()
    embedding = "model.embed_tokens"
    both = [Candidate("Q4_K", 1, 0.0), Candidate("Q6_K", 2, 0.0)]
    guess = sensitivity.prior(checkpoint, {embedding: both, V0: both})
    assert guess[embedding][0].predicted_kl > guess[embedding][1].predicted_kl
    assert guess[embedding][0].predicted_kl > guess[V0][0].predicted_kl
