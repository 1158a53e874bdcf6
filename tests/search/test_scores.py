"""Scores: predictions of each kind, scaled by what was measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.shapes import shaped_checkpoint

from bitquilt.bank import Cell
from bitquilt.search import scores
from bitquilt.search.knapsack import Choice
from bitquilt.search.scores import Probe

V0, V1 = (f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1))
MENU = {
    "model.embed_tokens": [Choice("Q4_K", 100, 0.0), Choice("Q6_K", 150, 0.0)],
    V0: [Choice("Q3_K", 10, 0.0), Choice("Q4_K", 12, 0.0), Choice("Q6_K", 16, 0.0)],
    V1: [Choice("Q4_K", 12, 0.0), Choice("Q8_0", 20, 0.0)],
}


def test_kinds():
    assert scores.kind("model.embed_tokens") == "embed_tokens"
    assert scores.kind(V0) == scores.kind(V1) == "v_proj"


def test_kinds_of_a_model():
    found = scores.kinds(shaped_checkpoint())
    assert found["embed_tokens"] == ["model.embed_tokens"]
    assert found["v_proj"] == [V0, V1]
    assert sum(map(len, found.values())) == 15


def test_a_factor_is_measured_over_predicted():
    assert Probe("v_proj", predicted=0.02, measured=0.03).factor == pytest.approx(1.5)
    assert Probe("v_proj", predicted=0.0, measured=0.03).factor == 1.0


def test_scores_are_predictions_times_factors():
    cells = {
        module: {c.grid: Cell(0.1 * c.nbytes, "gptq", "gptq") for c in found}
        for module, found in MENU.items()
    }
    bank = SimpleNamespace(cells=cells.__getitem__)
    scored = scores.scored(bank, MENU, {"v_proj": 3.0, "embed_tokens": 0.5})
    assert [c.divergence for c in scored[V0]] == pytest.approx([3.0, 3.6, 4.8])
    assert [c.divergence for c in scored["model.embed_tokens"]] == pytest.approx([5.0, 7.5])
    assert [(c.grid, c.nbytes) for c in scored[V1]] == [("Q4_K", 12), ("Q8_0", 20)]


def test_noise_is_the_same_every_time_and_of_a_roundings_size():
    checkpoint = shaped_checkpoint(vocabulary=20_000)
    weight = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(7))
    noise = scores._noise(checkpoint, "model.embed_tokens", weight)
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    expected = drawn * (scores.NOISE * weight.square().mean(1, keepdim=True).sqrt())
    assert torch.equal(noise, expected)


def test_only_the_asked_matrices_are_disturbed_and_the_source_never():
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(7))
    before = weight.clone()
    checkpoint = replace(shaped_checkpoint(), reader=lambda _: weight)
    load = scores._disturbed(checkpoint, [V0])
    assert torch.equal(load(f"{V1}.weight"), before)
    assert torch.equal(load(f"{V0}.weight"), before + scores._noise(checkpoint, V0, before))
    assert torch.equal(weight, before)


def test_the_first_guess_prefers_more_bits_and_larger_matrices():
    checkpoint = shaped_checkpoint()
    embedding = "model.embed_tokens"
    both = [Choice("Q4_K", 1, 0.0), Choice("Q6_K", 2, 0.0)]
    guess = scores.prior(checkpoint, {embedding: both, V0: both})
    assert guess[embedding][0].divergence > guess[embedding][1].divergence
    assert guess[embedding][0].divergence > guess[V0][0].divergence
