"""Moments of a whole model agree with hooks on its modules, in one pass and in several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bitquilt
from bitquilt.bases import reading
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.partners import Unit
from bitquilt.bases.reading import MOMENT_BYTES, BaseReading, moment_bytes
from bitquilt.bases.statistics import BaseStatistics, keep_statistics
from bitquilt.runtime.workdir import WorkDir
from tests.bases.models import unknown_checkpoint
from tests.bases.test_one_pass import read_as_a_whole

TOKENS = torch.randint(0, 300, (3, 24), generator=torch.Generator().manual_seed(0))
SHARED = "model.layers.1.self_attn.{}_proj"
MODULES = [SHARED.format(one) for one in "qkv"] + ["model.layers.0.mlp.down_proj", "lm_head"]


class Hooked:
    """What modules read, and the gradients of what they give, window by window."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in MODULES}
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in MODULES}
        for name in MODULES:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def hook(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            self.inputs[name].append(inputs[0].detach()[0].double())
            output.register_hook(lambda g: self.gradients[name].append(g[0].double()))

        return hook

    def hessian(self, readers: list[str]) -> Tensor:
        """The mean of x xᵀ, each token with the squares of all that its readers' outputs have."""
        x = torch.cat(self.inputs[readers[0]][-len(TOKENS) :])
        weight = sum(
            torch.cat(self.gradients[name][-len(TOKENS) :]).square().sum(1) for name in readers
        )
        return (x * weight[:, None]).T @ x / weight.sum()


@pytest.mark.parametrize(("most", "several"), [(1 << 30, False), (500_000, True)])
def test_moments_are_those_of_hooks(most: int, several: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MOMENT_BYTES", most)
    read_as_a_whole(monkeypatch)
    model = load_transformers_model(unknown_checkpoint(tmp_path, "granite"))
    hooked = Hooked(model)
    with WorkDir(tmp_path / "work", {}) as work:
        keep_statistics(BaseReading(model, TOKENS), work, bitquilt.Silent())
        found = BaseStatistics(work)
        assert work.has("moments/1") == several
        for readers in (MODULES[:3], MODULES[3:4], MODULES[4:]):
            wanted = hooked.hessian(readers)
            for name in readers:
                unit = Unit(f"{name}.weight", 0, transposed=False)
                hessian = found.hessian(unit)
                assert hessian is not None
                torch.testing.assert_close(hessian.double(), wanted, rtol=2e-3, atol=1e-3)
                gradient = torch.cat(hooked.gradients[name][-len(TOKENS) :])
                torch.testing.assert_close(
                    found.rows(unit), gradient.square().mean(0), rtol=1e-4, atol=1e-9
                )
                moment = found.output_moment(unit)
                assert moment is not None
                both = (gradient.T @ gradient / len(gradient)).float()
                scale = float(both.diagonal().max())
                torch.testing.assert_close(moment / scale, both / scale, rtol=2e-3, atol=1e-3)


def test_embeddings_have_the_gradients_of_what_is_looked_up(tmp_path: Path) -> None:
    model = load_transformers_model(unknown_checkpoint(tmp_path, "gemma3_text"))
    scale = model.config.hidden_size**0.5  # by which this type multiplies what it looks up
    gradients: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].register_hook(lambda g: gradients.append(g[0].double()))

    model.get_submodule("model.layers.0").register_forward_pre_hook(watch)
    with WorkDir(tmp_path / "work", {}) as work:
        keep_statistics(BaseReading(model, TOKENS), work, bitquilt.Silent())
        found = BaseStatistics(work)
    table = found.looked_up("model.embed_tokens.weight")
    assert table is not None
    columns, shares = table
    counts = torch.bincount(TOKENS.flatten(), minlength=len(shares))
    torch.testing.assert_close(shares, counts.double() / TOKENS.numel())
    wanted = (scale * torch.cat(gradients[-len(TOKENS) :])).square().mean(0)
    torch.testing.assert_close(columns, wanted, rtol=1e-3, atol=1e-12)
    assert (found.head, found.width) == ("model.embed_tokens.weight", 128)


@pytest.mark.parametrize(("free", "most"), [(100 << 30, 50 << 30), (6 << 30, MOMENT_BYTES)])
def test_a_gpu_sums_as_many_moments_as_half_of_its_memory_holds(monkeypatch, free, most):
    assert moment_bytes() == MOMENT_BYTES
    monkeypatch.setattr(reading, "compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 139 << 30))
    assert moment_bytes() == most
