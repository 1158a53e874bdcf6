"""Attributions against finite differences, and corrections against corrections that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitquilt import qtypes
from bitquilt.allocation import interactions
from bitquilt.allocation.space import AllocationSpace, Candidate
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import weights_metrics
from bitquilt.models import open_checkpoint
from bitquilt.rounding.nearest import fit
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Recorded

LENGTH = 24


class Rounded:
    """A tiny model with every matrix on one type."""

    def __init__(self, place, qtype, tied):
        self.checkpoint = open_checkpoint(tiny_checkpoint(place, "llama", tied=tied))
        tokens = torch.randint(3, 500, (4, LENGTH), generator=torch.Generator().manual_seed(0))
        with WorkDir(place / "work", {}) as work:
            self.teacher = OriginalModel(self.checkpoint, work).on(tokens)
        self.mix = dict.fromkeys(self.checkpoint.matrices, qtype)

    def packed(self, module, qtype):
        weight = self.checkpoint.load(f"{module}.weight")
        return qtypes.get(qtype).pack(fit(qtypes.get(qtype), weight, torch.ones(weight.shape[1])))

    def kl(self, module, stretch):
        """With the error of one matrix so much longer; the mean over all tokens of a window."""

        def load(name):
            exact, own = self.checkpoint.load(name), name.removesuffix(".weight")
            if own not in self.mix:
                return exact
            rounded = qtypes.get(self.mix[own]).dequantize(self.packed(own, self.mix[own]))
            return rounded + (stretch if own == module else 0.0) * (rounded - exact)

        return weights_metrics(self.teacher, self.checkpoint, load).kl.mean(dtype=np.float64)

    def attributions(self):
        return interactions.kl_attribution(
            self.checkpoint, self.mix, self.packed, self.teacher, Silent()
        )


@pytest.mark.parametrize("tied", [True, False])
def test_an_attribution_is_half_the_slope_of_kl_along_the_error(tmp_path, tied):
    model = Rounded(tmp_path, "Q4_0", tied)
    # the last token of a window predicts none, and is in the mean of attributions only
    found = model.attributions().mean(0)
    for index in (0, 1, len(model.mix) - 1):
        module = list(model.mix)[index]
        slope = (model.kl(module, 0.05) - model.kl(module, -0.05)) / 0.1
        assert found[index] == pytest.approx(0.5 * slope, rel=0.25)


def test_small_errors_have_attributions_that_add_up_to_kl(tmp_path):
    model = Rounded(tmp_path, "Q8_0", tied=True)
    assert model.attributions().sum(1).mean() == pytest.approx(model.kl("", 0.0), rel=0.15)


def test_one_sample_a_batch_and_a_step_for_each(tmp_path):
    model, steps = Rounded(tmp_path, "Q8_0", tied=True), []
    text = replace(model.teacher, tokens=model.teacher.tokens[:3], hidden=model.teacher.hidden[:3])
    found = interactions.kl_attribution(
        model.checkpoint, model.mix, model.packed, text, Recorded(steps)
    )
    assert found.shape == (2, len(model.mix))
    assert len(steps) == 2


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


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = Rounded(tmp_path, "Q8_0", tied=True)
    sound = model.packed

    def packed(module, qtype):
        parts = sound(module, qtype)
        parts["data"].view(torch.float16)[0, 0] = torch.nan
        return parts

    model.packed = packed
    with pytest.raises(UserError, match=r"tiny-llama computes NaN or infinity .* to Q8_0"):
        model.attributions()
