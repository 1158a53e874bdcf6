"""Sampling against its definition: transformers' filters, chi-square, logits worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.engines import GenerationRequest, Sampling
from bitquilt.engines.sampling import AVOIDING, Sampler, candidates
from tests.engines.draws import DRAWS, SETTINGS, chi_square, expected

VOCABULARY = 3000
LOGITS = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32) * 2


def draw(logits: npt.NDArray[np.float32], request: GenerationRequest) -> int:
    return Sampler(request).draw(logits)


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution(name: str) -> None:
    sampler = Sampler(GenerationRequest(tokens=[0], sampling=SETTINGS[name], max_tokens=DRAWS))
    drawn = [sampler.draw(LOGITS) for _ in range(DRAWS)]
    assert chi_square(drawn, expected(LOGITS, SETTINGS[name])) > 0.001


def test_the_test_of_fit_can_fail() -> None:
    sampler = Sampler(
        GenerationRequest(tokens=[0], sampling=Sampling(temperature=0.75), max_tokens=DRAWS)
    )
    drawn = [sampler.draw(LOGITS) for _ in range(DRAWS)]
    assert chi_square(drawn, expected(LOGITS, Sampling(temperature=0.7))) < 1e-6


@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.01, 1.0, 5.0, 30.0]),
    temperature=st.sampled_from([0.1, 0.6, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 300, 500]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
)
def test_filters_are_those_of_transformers(
    seed: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.random.default_rng(seed).normal(size=400).astype(np.float32) * np.float32(spread)
    ids, weights = candidates(logits, settings)
    found = np.zeros(400)
    found[ids] = weights / weights.sum()
    np.testing.assert_allclose(found, expected(logits, settings), rtol=1e-3, atol=1e-5)


def test_zero_temperature_is_greedy() -> None:
    request = GenerationRequest(tokens=[0], sampling=Sampling(top_k=5, top_p=0.5), max_tokens=1)
    assert draw(LOGITS, request) == LOGITS.argmax()


def test_seeds_repeat_and_differ() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(
            GenerationRequest(
                tokens=[0], sampling=Sampling(temperature=1.0, top_p=0.9, seed=seed), max_tokens=50
            )
        )
        return [sampler.draw(LOGITS) for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)


# The penalties are told by what greedy decoding then takes; the logits are worked out beside.
FOUR = np.array([2.0, 1.5, 1.0, -1.0], dtype=np.float32)


@pytest.mark.parametrize(
    ("settings", "tokens", "said", "taken"),
    [
        (Sampling(repetition_penalty=1.3), [0], 0, 0),  # 2 / 1.3 = 1.54 > 1.5
        (Sampling(repetition_penalty=1.4), [0], 0, 1),  # 2 / 1.4 = 1.43 < 1.5
        (Sampling(repetition_penalty=1.4), [0, 0, 0], 3, 1),  # once, however often
        (Sampling(repetition_penalty=2.0), [0, 1], 0, 0),  # 1.0, 0.75, and 1.0 comes later
        (Sampling(presence_penalty=0.6), [0, 0], 1, 1),  # 2 - 0.6 < 1.5
        (Sampling(presence_penalty=0.4), [0, 0, 0], 3, 0),  # once, however often
        (Sampling(presence_penalty=9.0), [0, 0], 0, 0),  # the prompt does not count
        (Sampling(frequency_penalty=0.2), [0, 0], 2, 0),  # 2 - 0.4 > 1.5
        (Sampling(frequency_penalty=0.2), [0, 0, 0], 3, 1),  # 2 - 0.6 < 1.5
        (Sampling(frequency_penalty=0.2), [0, 0, 0], 2, 0),  # two of them are the model's own
        (Sampling(frequency_penalty=0.3, presence_penalty=0.3), [1, 0], 1, 1),  # 2 - 0.6
        (Sampling(presence_penalty=-0.6), [1], 1, 1),  # 1.5 + 0.6 > 2
    ],
)
def test_penalties(settings: Sampling, tokens: list[int], said: int, taken: int) -> None:
    before = FOUR.copy()
    request = GenerationRequest(tokens=tokens, sampling=settings, max_tokens=1, said=said)
    assert draw(FOUR, request) == taken
    np.testing.assert_array_equal(FOUR, before)


def test_negative_logits_are_penalized_away_from_zero() -> None:
    logits = np.array([-1.0, -1.5], dtype=np.float32)
    settings = Sampling(repetition_penalty=1.6)
    assert draw(logits, GenerationRequest(tokens=[0], sampling=settings, max_tokens=1)) == 1


def test_penalties_count_what_is_drawn() -> None:
    sampler = Sampler(
        GenerationRequest(tokens=[3], sampling=Sampling(frequency_penalty=0.4), max_tokens=9)
    )
    # 2, then 1.6, 1.2 | 1.5, 1.1 | 1.0: each is taken while it is the largest
    assert [sampler.draw(FOUR) for _ in range(6)] == [0, 0, 1, 0, 1, 2]


def test_what_is_avoided_is_avoided_as_far_as_it_is_followed() -> None:
    sure = np.array([9.0, 9.0 - AVOIDING + 0.1, 0.0], dtype=np.float32)
    sampler = Sampler(
        GenerationRequest(tokens=[5], sampling=Sampling(), max_tokens=9, avoid=[0, 0])
    )
    assert [sampler.draw(sure) for _ in range(2)] == [1, 0]
    surer = np.array([9.0, 9.0 - AVOIDING - 0.1, 0.0], dtype=np.float32)
    sampler = Sampler(
        GenerationRequest(tokens=[5], sampling=Sampling(), max_tokens=9, avoid=[0, 0])
    )
    assert [sampler.draw(surer), sampler.draw(sure), sampler.draw(sure)] == [0, 1, 0]
