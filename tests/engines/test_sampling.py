"""Sampling against its definition, and the stream of text."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.engines.engine import Sampling
from bitquilt.engines.sampling import Sampler

VOCABULARY = 3000
LOGITS = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32) * 2


def drawn(settings: Sampling, count: int = 4000) -> set[int]:
    """Every token that many draws give."""
    sampler = Sampler(settings, [])
    return {sampler.draw(LOGITS) for _ in range(count)}


def nucleus(top_p: float) -> set[int]:
    """The smallest set of likeliest tokens that reaches ``top_p``."""
    order = np.argsort(-LOGITS)
    weights = np.exp(LOGITS[order].astype(np.float64))
    reached = np.cumsum(weights) / weights.sum()
    return set(order[: int(np.searchsorted(reached, top_p)) + 1].tolist())


def test_zero_temperature_is_greedy() -> None:
    assert drawn(Sampling(top_k=5, top_p=0.5)) == {int(LOGITS.argmax())}


@pytest.mark.parametrize("top_p", [0.01, 0.1, 0.5])
def test_top_p_keeps_the_nucleus(top_p: float) -> None:
    got = drawn(Sampling(temperature=3.0, top_p=top_p))
    assert got <= nucleus(top_p)
    assert len(got) > 0.9 * len(nucleus(top_p))


def test_top_k_keeps_the_likeliest() -> None:
    assert drawn(Sampling(temperature=2.0, top_k=7)) == set(np.argsort(-LOGITS)[:7].tolist())


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    near = set(np.flatnonzero(LOGITS.max() + np.log(0.3) <= LOGITS).tolist())
    assert drawn(Sampling(temperature=2.0, min_p=0.3)) == near


def test_frequencies_follow_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0), [])
    counts = np.bincount([sampler.draw(logits) for _ in range(4000)]) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


def test_repetition_penalty_counts_the_prompt() -> None:
    logits = np.array([2.0, 1.5, -1.0], dtype=np.float32)
    assert Sampler(Sampling(repetition_penalty=2.0), [0]).draw(logits) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), [0, 1]).draw(logits) == 0
