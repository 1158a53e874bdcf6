"""Attributions against finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitquilt import qtypes
from bitquilt.allocation import attribution
from bitquilt.allocation.attribution import kl_attribution
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
        return kl_attribution(self.checkpoint, self.mix, self.packed, self.teacher, Silent())


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
    found = kl_attribution(model.checkpoint, model.mix, model.packed, text, Recorded(steps))
    assert found.shape == (2, len(model.mix))
    assert sum(steps) == pytest.approx(2)


def test_text_in_parts_gives_the_same(tmp_path, monkeypatch):
    model = Rounded(tmp_path, "Q4_0", tied=False)
    whole = model.attributions()
    monkeypatch.setitem(attribution.STATES, model.teacher.head.device.type, 1)
    np.testing.assert_allclose(model.attributions(), whole, rtol=1e-4)


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
