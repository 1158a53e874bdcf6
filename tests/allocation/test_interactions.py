"""Corrections against corrections that are known."""

from __future__ import annotations

import numpy as np
import pytest

from bitquilt.allocation import interactions
from bitquilt.allocation.space import AllocationSpace, Candidate

MODULES = [
    f"model.layers.{layer}.mlp.{kind}_proj"
    for layer in range(12)
    for kind in ("gate", "up", "down", "o")
]


def drawn(noise, batches=8):
    """Corrections by kind and block, and attributions of predictions under them."""
    rng = np.random.default_rng(0)
    kinds, blocks = rng.normal(1, 0.3, 4), rng.normal(1, 0.15, 12)
    true = 2.5 * (blocks[:, None] * kinds).ravel()
    predicted = rng.lognormal(-6, 1, len(MODULES))
    samples = true * (1 + noise * rng.standard_normal((batches, len(MODULES))))
    return true, predicted, samples * predicted


def test_corrections_without_noise_are_attributions_over_predictions():
    true, predicted, samples = drawn(noise=1e-6)
    np.testing.assert_allclose(
        interactions.sensitivity_corrections(samples, predicted, MODULES), true, rtol=0.01
    )


def test_noise_is_told_from_differences():
    true, predicted, samples = drawn(noise=1.2)
    plain = samples.mean(0) / predicted
    found = interactions.sensitivity_corrections(samples, predicted, MODULES)
    assert np.std(found / true) < 0.6 * np.std(plain / true)
    assert np.corrcoef(found, true)[0, 1] > np.corrcoef(plain, true)[0, 1]


def test_exact_matrices_are_as_all_and_no_correction_is_wild():
    true, predicted, samples = drawn(noise=0.1)
    predicted[3], samples[:, 3], samples[:, 7] = 0, 0, -5
    found = interactions.sensitivity_corrections(samples, predicted, MODULES)
    common = np.median(np.delete(true, [3, 7]))
    assert found[3] == pytest.approx(common, rel=0.1)
    assert found[7] == pytest.approx(0.2 * common, rel=0.1)


def test_a_slope_that_is_all_noise_changes_nothing():
    _, predicted, samples = drawn(noise=0.1)
    np.testing.assert_array_equal(
        interactions.sensitivity_corrections(-samples, predicted, MODULES), 1.0
    )
    np.testing.assert_array_equal(
        interactions.sensitivity_corrections(samples, 0 * predicted, MODULES), 1.0
    )


def test_budgets_are_averaged_and_each_is_measured_once():
    own = [Candidate("Q2_K", 10, 4.0), Candidate("Q4_K", 20, 1.0)]
    space = AllocationSpace.of({"model.layers.0.o_proj": own, "model.layers.1.o_proj": own})
    asked = []

    def samples(mix):
        asked.append(mix)
        level = 8.0 if "Q2_K" in mix.values() else 2.0  # times the predicted 4 and 1
        costs = {"Q2_K": 4.0, "Q4_K": 1.0}
        return level * np.array([[costs[qtype] for qtype in mix.values()]] * 2)

    found = interactions.corrected_scores(space, [20, 40, 20], samples)
    assert len(asked) == 2
    for scores in found.scores:
        np.testing.assert_allclose(scores, [16.0, 4.0])


def test_what_is_known_well_is_believed():
    """One matrix with one mean attribution, once as precise as others are not, once like them."""
    true, predicted, samples = drawn(noise=1.2)
    level = 0.3 * np.median(true) * predicted[0]
    found = []
    for noise in (0.02, 1.2):
        samples[:, 0] = level * (1 + noise * np.linspace(-1.5, 1.5, len(samples)) / 0.3)
        factors = interactions.sensitivity_corrections(samples, predicted, MODULES)
        found.append(factors[0] / np.median(factors))
    assert found[0] < 0.75 < found[1]
