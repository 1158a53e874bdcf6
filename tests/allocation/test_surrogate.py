"""The surrogate: what it is before observations, what it learns from them, what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation.moves import random_vector
from bitquilt.allocation.surrogate import FitQuality, Observation, Parts, Surrogate
from tests.allocation.synthetic import Synthetic


def observations(model, count, texts, rng):
    space = [random_vector(model.space, model.capacity, rng) for _ in range(count)]
    windows = [[3 * text, 3 * text + 1, 3 * text + 2] for text in range(texts)]
    return [
        Observation(k % texts, vector, float(model.measure([vector], windows[k % texts]).mean()))
        for k, vector in enumerate(space)
    ]


def test_before_any_observation_it_is_the_sum_of_scores():
    model = Synthetic()
    surrogate = Surrogate.prior(Parts(model.space))
    vector = random_vector(model.space, model.capacity, np.random.default_rng(0))
    total = sum(own[i] for own, i in zip(model.space.scores, vector, strict=True))
    assert surrogate.predict(vector) == pytest.approx(total)


def test_costs_around_a_mix_are_those_of_its_neighbours():
    """Each with one matrix changed, interactions included."""
    model = Synthetic()
    parts, rng = Parts(model.space), np.random.default_rng(0)
    vector = random_vector(model.space, model.capacity, rng)
    weights = 1 + rng.normal(0, 0.3, len(parts.spreads))
    for m, costs in enumerate(parts.around(vector, weights)):
        here = parts.of(vector) @ weights
        for choice, cost in enumerate(costs):
            other = (*vector[:m], choice, *vector[m + 1 :])
            assert parts.of(other) @ weights - here == pytest.approx(cost - costs[vector[m]])


def test_it_learns_what_scores_do_not_know():
    model, rng = Synthetic(wrong=0.7), np.random.default_rng(0)
    parts = Parts(model.space)
    taught, scores, learned = Surrogate.fit(parts, observations(model, 60, 6, rng))
    fresh = [random_vector(model.space, model.capacity, rng) for _ in range(40)]
    true = np.array([model.kl(vector) for vector in fresh])

    def rank(surrogate):
        return FitQuality.of(np.array([surrogate.predict(vector) for vector in fresh]), true).rank

    assert rank(taught) > 0.98 > rank(Surrogate.prior(parts))
    assert learned.error < 0.5 * scores.error
    assert learned.rank == pytest.approx(rank(taught), abs=0.05)  # left out is like fresh


def test_noise_teaches_nothing():
    model, rng = Synthetic(), np.random.default_rng(0)
    noise = [
        one._replace(kl=float(rng.gamma(100.0, 0.01))) for one in observations(model, 40, 4, rng)
    ]
    _, _, learned = Surrogate.fit(Parts(model.space), noise)
    assert abs(learned.rank) < 0.35


def test_the_level_of_a_text_does_not_matter():
    model, rng = Synthetic(), np.random.default_rng(0)
    known = observations(model, 40, 4, rng)
    harder = [one._replace(kl=one.kl * 3 ** (one.text % 2)) for one in known]
    parts = Parts(model.space)
    (a, *_), (b, *_) = Surrogate.fit(parts, known), Surrogate.fit(parts, harder)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6)


def test_draws_vary_as_the_covariance_says():
    model, rng = Synthetic(), np.random.default_rng(0)
    surrogate, *_ = Surrogate.fit(Parts(model.space), observations(model, 30, 3, rng))
    draws = np.array([surrogate.draw(rng) for _ in range(4000)])
    covariance = surrogate.root @ surrogate.root.T
    scale = np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    assert np.abs((np.cov(draws.T) - covariance) / scale).max() < 0.12
    np.testing.assert_allclose(draws.mean(0), surrogate.mean, atol=0.05)


def test_trust():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert FitQuality.of(2 * a, a).rank == pytest.approx(1.0)
    assert FitQuality.of(a, a).error == 0
    assert FitQuality.of(a[::-1], a).rank == pytest.approx(-1.0)
    assert str(FitQuality(0.5, 0.125)) == "rank correlation 0.50, error 12.5%"
