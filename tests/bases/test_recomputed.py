"""Layers that are computed again on the way back leave the same statistics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.recomputed import RecomputedLayers, layers_of
from tests.bases.models import unknown_checkpoint
from tests.bases.test_lent_weights import TOKENS, collected
from tests.bases.test_one_pass import read_as_a_whole


@pytest.mark.parametrize("kind", ["granite", "phi3", "qwen3_moe", "lfm2", "gemma3_text"])
def test_statistics_are_the_same(kind: str, tmp_path: Path, monkeypatch) -> None:
    read_as_a_whole(monkeypatch)
    model = load_transformers_model(unknown_checkpoint(tmp_path, kind, torch.bfloat16), least=0)
    lent = lent_weights(model)
    wanted = collected(model, tmp_path / "kept")
    much = lent.saved_bytes
    found = collected(model, tmp_path / "again", most_kept=0)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.allclose(value, found[key], rtol=1e-4, atol=1e-6), key
    assert lent.saved_bytes > much  # the same, a layer at a time, and the layers' inputs
    assert all("forward" not in vars(layer) for layer in layers_of(model))


def test_only_inputs_of_layers_are_kept(tmp_path: Path) -> None:
    model = load_transformers_model(unknown_checkpoint(tmp_path, "granite"))
    lent = lent_weights(model)
    embedded = model.get_input_embeddings()(TOKENS[:1]).requires_grad_()
    kept = {}
    for again in (False, True):
        with lent.saved():
            if again:
                with RecomputedLayers(model):
                    model(inputs_embeds=embedded, use_cache=False)
            else:
                model(inputs_embeds=embedded, use_cache=False)
            kept[again] = lent.saved_bytes
    assert kept[True] < 0.4 * kept[False]


class Layer(nn.Module):
    """One that adds what the layer before it has left for it."""

    def __init__(self, left: dict[str, Tensor]) -> None:
        super().__init__()
        self.left, self.linear = left, nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.linear(x)
        found = self.left.pop("made", None)
        self.left["made"] = made
        return x + made if found is None else x + made + found


class Sharing(nn.Module):
    """A model of layers that give each other more than their outputs."""

    def __init__(self) -> None:
        super().__init__()
        left: dict[str, Tensor] = {}
        self.embedding, self.head = nn.Embedding(512, 16), nn.Linear(16, 512, bias=False)
        self.layers = nn.ModuleList([Layer(left), Layer(left)])
        self.left = left

    def forward(self, tokens: Tensor, use_cache: bool) -> SimpleNamespace:
        self.left.clear()
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return SimpleNamespace(logits=self.head(x))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_layers_that_share_more_than_outputs_keep_what_they_need(tmp_path: Path) -> None:
    model = Sharing().requires_grad_(False)
    wanted = collected(model, tmp_path / "kept")
    found = collected(model, tmp_path / "again", most_kept=0)
    assert all(torch.equal(value, found[key]) for key, value in wanted.items())


def test_layers_are_those_of_the_outermost_lists() -> None:
    inner = nn.Module()
    inner.experts = nn.ModuleList([nn.Linear(2, 2)])
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2), inner])
    assert list(layers_of(model)) == [*model.layers]
