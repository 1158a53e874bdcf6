"""A model whose weights are lent computes the same as one in float32, forward and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitquilt import UserError
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.lent_weights import LentWeights, lent_weights
from bitquilt.bases.reading import BaseReading
from bitquilt.bases.statistics import keep_statistics
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.bases.models import unknown_checkpoint
from tests.factories import VOCABULARY

TOKENS = torch.randint(0, VOCABULARY - 6, (2, 24), generator=torch.Generator().manual_seed(0))


def collected(model: nn.Module, place: Path, **options: int) -> dict[str, Tensor]:
    """All statistics of a model."""
    found: dict[str, Tensor] = {}
    with WorkDir(place, {}) as work:
        keep_statistics(BaseReading(model, TOKENS, **options), work, Silent())
        passes = int(work.facts("fisher")["passes"])
        for name in ("fisher", *(f"moments/{number}" for number in range(passes))):
            found |= {f"{name} {key}": tensor for key, tensor in work.load(name).items()}
    return found


# joins, experts, convolutions, scaled and tied embeddings, Mamba
@pytest.mark.parametrize("kind", ["phi3", "qwen3_moe", "lfm2", "gemma3_text", "falcon_h1"])
def test_statistics_are_those_of_the_model_in_float32(kind: str, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, kind, torch.bfloat16)
    lending = load_transformers_model(directory, least=0)
    whole = load_transformers_model(directory, least=0)
    assert lent_weights(whole).keep()
    wanted, found = collected(whole, tmp_path / "whole"), collected(lending, tmp_path / "lending")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert torch.bfloat16 in {one.dtype for one in lending.parameters()}  # none was kept
    assert not lent_weights(lending).known


def test_weights_stay_in_the_files_until_they_are_used(tmp_path: Path) -> None:
    """What is written into the file meanwhile is in the model: no copy was made."""
    directory = unknown_checkpoint(tmp_path, "granite", torch.bfloat16)
    model = load_transformers_model(directory, least=0)
    parameter = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    raw = parameter.detach().view(torch.int16).numpy().tobytes()
    path = directory / "model.safetensors"
    data = path.read_bytes()
    at = data.index(raw)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(len(raw)))
    assert not parameter.any()


class Outside(nn.Module):
    """A layer whose parent multiplies with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.inner.weight.T


def test_what_is_used_from_outside_fails_until_it_is_kept() -> None:
    model = Outside()
    lent = LentWeights(model, least=0)
    x = torch.randn(4, 32)
    with pytest.raises(RuntimeError, match="dtype"):
        model(x)
    assert lent.keep()
    assert torch.equal(model(x), x @ model.inner.weight.T)
    assert not lent.keep()


def test_a_model_that_does_not_run_is_one_sentence() -> None:
    """As one whose config asks for more experts than there are."""
    lent = LentWeights(nn.Linear(4, 4), least=0)
    with pytest.raises(UserError, match=r"Linear does not run .*\(selected index k out of range\)"):
        lent.tried(lambda: torch.zeros(3).topk(4))


def test_the_way_back_keeps_places_and_no_numbers() -> None:
    layers = [nn.Linear(64, 64, dtype=torch.bfloat16) for _ in range(6)]
    model = nn.Sequential(*layers).requires_grad_(False)
    lent = LentWeights(model, least=0)
    whole = [(layer.weight.float(), layer.bias.float()) for layer in layers]
    x = torch.randn(4, 64, requires_grad=True)
    with lent.saved():
        model(x).square().sum().backward()
    y = x.detach().requires_grad_()
    out = y
    for weight, bias in whole:
        out = nn.functional.linear(out, weight, bias)
    out.square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert len(lent._back) == 2
    lent.end_window()
    assert not lent._back
