"""One pass, layer by layer, leaves the moments that the whole model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bitquilt.bases import reading
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.layerwise import NotLayerwiseError, layerwise_model
from bitquilt.bases.one_pass import kept_every
from bitquilt.bases.reading import BaseReading
from bitquilt.bases.statistics import BaseStatistics, keep_statistics
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.bases.models import unknown_checkpoint
from tests.factories import VOCABULARY

TOKENS = torch.randint(0, VOCABULARY - 6, (5, 40), generator=torch.Generator().manual_seed(0))


def read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models read as a whole."""
    monkeypatch.setattr(BaseReading, "_one_pass", lambda _: None)


def found_of(model: nn.Module, place: Path, **options: int) -> dict[str, Tensor]:
    """All that is known of a model's matrices, whatever part of the pass it is of."""
    found: dict[str, Tensor] = {}
    with WorkDir(place, {}) as work:
        keep_statistics(BaseReading(model, TOKENS, **options), work, Silent())
        statistics = BaseStatistics(work)
        for key, one in work.load("fisher").items():
            found[key] = one.double()
        for unit in statistics.sums():
            for name, moment in (
                ("hessian", statistics.hessian(unit)),
                ("outputs", statistics.output_moment(unit)),
            ):
                if moment is not None:
                    found[f"{name} {unit}"] = moment.double()
    return found


def assert_same(wanted: dict[str, Tensor], found: dict[str, Tensor], near: float) -> None:
    assert wanted.keys() == found.keys()
    for key, one in wanted.items():
        scale = float(one.abs().max()) or 1.0
        torch.testing.assert_close(found[key] / scale, one / scale, rtol=0, atol=near, msg=key)


@pytest.mark.parametrize(
    "kind", ["granite", "qwen3_moe", "gemma3_text", "lfm2", "falcon_h1", "phi3"]
)
def test_moments_are_those_of_the_whole_model(kind: str, tmp_path: Path, monkeypatch) -> None:
    model = load_transformers_model(unknown_checkpoint(tmp_path, kind, torch.bfloat16), least=0)
    assert not BaseReading(model, TOKENS).how
    by_layer = found_of(model, tmp_path / "layers")
    # inputs of a few layers alone, a window at a time, each matrix's moments on their own
    monkeypatch.setattr(reading, "MOMENT_BYTES", 300_000)
    by_part = found_of(model, tmp_path / "parts", most_kept=1)
    read_as_a_whole(monkeypatch)
    monkeypatch.setattr(reading, "MOMENT_BYTES", 1 << 30)
    wanted = found_of(model, tmp_path / "whole")
    # packed moments are in half precision
    assert_same(wanted, by_layer, 1e-3)
    assert_same(
        {key: one for key, one in wanted.items() if " " not in key},
        {key: one for key, one in by_layer.items() if " " not in key},
        1e-4,
    )
    assert_same(wanted, by_part, 1e-3)


@pytest.mark.parametrize(
    ("layers", "nbytes", "most", "every"),
    [(48, 1, 100, 1), (48, 1, 47, 2), (48, 1, 20, 3), (48, 1, 1, 6), (1, 5, 0, 1)],
)
def test_as_many_inputs_are_kept_as_fit(layers: int, nbytes: int, most: int, every: int) -> None:
    assert kept_every(layers, nbytes, most) == every


class Plain(nn.Module):
    """A model whose layers are called by a function that is given."""

    def __init__(self, calls: Callable[[Plain, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(512, 16), nn.Linear(16, 512, bias=False)
        self.layers = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(2)])
        self.calls = calls

    def forward(self, tokens: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.calls(self, self.embedding(tokens))))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize(
    "calls",
    [
        lambda own, x: own.layers[0](own.layers[1](own.layers[0](x))),
        lambda own, x: own.layers[1](own.layers[0](x) * 2),
        lambda own, x: own.layers[0](x),
    ],
    ids=["used twice", "changed between layers", "one is not used"],
)
def test_layers_that_are_no_plain_sequence_stay_together(calls) -> None:
    model = Plain(calls).requires_grad_(False)
    with pytest.raises(NotLayerwiseError):
        layerwise_model(model, TOKENS[:1]).begin(TOKENS[:1])
    whole = BaseReading(model, TOKENS)
    assert whole.one_pass is None
    assert "cannot be run one by one (" in whole.how


def test_plain_layers_are_run_one_by_one() -> None:
    model = Plain(lambda own, x: own.layers[1](own.layers[0](x))).requires_grad_(False)
    assert not BaseReading(model, TOKENS).how
    hidden, calls = (steps := layerwise_model(model, TOKENS[:1])).begin(TOKENS[:2])
    for index, call in enumerate(calls):
        hidden = steps.run(index, hidden, call)
    logits = steps.end(TOKENS[:2], hidden)
    assert torch.equal(logits, model(TOKENS[:2], use_cache=False).logits)
