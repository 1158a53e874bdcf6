"""The bank: what is rounded stays rounded, and mixes are read from it."""

import pytest
import torch
from tests.factories import tiny_checkpoint

from bitquilt import grids
from bitquilt.bank import Bank
from bitquilt.calibration.capture import capture
from bitquilt.checkpoint import open_checkpoint
from bitquilt.forward import BlockwiseModel
from bitquilt.workdir import WorkDir


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("bank")
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama4_text"))
    work = WorkDir(tmp_path / "work", {})
    tokens = torch.randint(3, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    capture(BlockwiseModel(checkpoint), tokens, 1, work, lambda: None)
    return Bank(checkpoint, work)


def test_grids_are_added_and_nothing_is_rounded_twice(bank, monkeypatch):
    module = "model.layers.0.self_attn.q_proj"
    steps = []
    bank.build({module: ["Q4_K"]}, lambda: steps.append(1))
    first = bank.packed(module, "Q4_K")
    bank.build({module: ["Q4_K", "Q8_0", "4bit-g64"]}, lambda: steps.append(1))
    assert len(steps) == 4
    assert set(bank.predicted(module)) == {"Q4_K", "Q8_0", "4bit-g64"}
    assert torch.equal(first["data"], bank.packed(module, "Q4_K")["data"])

    def no_more(*_):
        raise AssertionError("rounded twice")

    monkeypatch.setattr(type(grids.get("Q4_K")), "round_nearest", no_more)
    bank.build({module: ["Q4_K"]}, lambda: None)


def test_more_bits_are_predicted_to_cost_less(bank):
    for module in bank.checkpoint.matrices:
        bank.build({module: ["Q2_K", "Q4_K", "Q6_K", "F32"]}, lambda: None)
        costs = bank.predicted(module)
        assert costs["Q2_K"] > costs["Q4_K"] > costs["Q6_K"] > costs["F32"] == 0


def test_weights_of_a_mix(bank):
    module = "model.layers.1.mlp.down_proj"
    bank.build({module: ["Q4_K"]}, lambda: None)
    weights = bank.weights({module: "Q4_K"})
    exact = bank.checkpoint.load(f"{module}.weight")
    importance = bank.moments.hessian(module).diagonal().contiguous()
    grid = grids.get("Q4_K")
    expected = grid.dequantize(grid.round_nearest(exact, importance))
    assert torch.equal(weights(f"{module}.weight"), expected)
    other = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(weights(other), bank.checkpoint.load(other))
