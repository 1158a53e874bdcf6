"""Rounding into the bank: what is rounded stays rounded, weighted by what reads it."""

import shutil

import pytest
import torch

from bitquilt import qtypes
from bitquilt.calibration import block_moments
from bitquilt.calibration.collect import collect_statistics
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.rounding import input_work
from bitquilt.rounding import round_layers as round_layers_module
from bitquilt.rounding.costs import polishing_seconds, rounding_seconds
from bitquilt.rounding.hessian import factorize
from bitquilt.rounding.input_work import MemoryUse
from bitquilt.rounding.layer_bank import POLISHED, LayerBank
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_layers import polish_layers, polishing_work, round_layers
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.progress import Recorded


def captured(tmp_path, rounding="nearest", **shape):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "llama4_text", **shape))
    work = WorkDir(tmp_path / "work", {})
    tokens = torch.randint(3, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    collect_statistics(
        BlockwiseModel(checkpoint),
        tokens,
        torch.zeros(len(tokens), dtype=torch.int64),
        work,
        Silent(),
    )
    return LayerBank(checkpoint, work, rounding)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return captured(tmp_path_factory.mktemp("bank"))


def test_qtypes_are_added_and_nothing_is_rounded_twice(bank, monkeypatch):
    module = "model.layers.0.self_attn.q_proj"
    steps = []
    round_layers(bank, {module: ["Q4_K"]}, Recorded(steps))
    first = bank.packed(module, "Q4_K")
    round_layers(bank, {module: ["Q4_K", "Q8_0", "4bit-g64"]}, Recorded(steps))
    weights = bank.weights(module)
    names = ("Q4_K", "Q8_0", "4bit-g64")  # what is there already costs nothing again
    once = sum(rounding_seconds(name, weights) for name in names)
    assert sum(steps) == pytest.approx(once)
    assert set(bank.cells(module)) == {"Q4_K", "Q8_0", "4bit-g64"}
    assert torch.equal(first["data"], bank.packed(module, "Q4_K")["data"])

    def no_more(*_):
        raise AssertionError("rounded twice")

    monkeypatch.setattr("bitquilt.rounding.input_work.round_once", no_more)
    round_layers(bank, {module: ["Q4_K"]}, Silent())


@pytest.mark.parametrize(("rounding", "count"), [("gptq", 1), ("nearest", 0)])
def test_a_gpu_without_kernels_is_told(tmp_path, monkeypatch, rounding, count):
    bank, lines = captured(tmp_path, rounding), []
    monkeypatch.setattr(round_layers_module, "compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(round_layers_module.InputWork, "batches", lambda *_: [])
    monkeypatch.setattr(round_layers_module, "_reported", set())
    monkeypatch.setattr("bitquilt.rounding.kernels.compile_error", lambda: "no compiler")
    for qtype in ("Q4_K", "4bit-g64"):  # once, though there are two formats
        round_layers(bank, {"model.layers.0.mlp.up_proj": [qtype]}, Recorded(lines=lines))
    assert len(lines) == count
    assert all("(no compiler); torch's operations round instead" in line for line in lines)


def test_what_cannot_be_fetched_is_not_kept(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    bank, module = captured(tmp_path, "gptq"), "model.layers.0.self_attn.q_proj"
    monkeypatch.setattr("bitquilt.rounding.input_work.moved", fail)
    with pytest.raises(MemoryError, match="no room"):
        round_layers(bank, {module: ["4bit-g32"]}, Silent())
    assert not bank.cells(module)


def test_more_bits_are_predicted_to_cost_less(bank):
    for module in bank.checkpoint.matrices:
        round_layers(bank, {module: ["Q2_K", "Q4_K", "Q6_K", "F32"]}, Silent())
        costs = {name: cell.predicted_kl for name, cell in bank.cells(module).items()}
        assert costs["Q2_K"] > costs["Q4_K"] > costs["Q6_K"] > costs["F32"] == 0


@pytest.mark.parametrize("tied", [True, False])
def test_importance_is_what_reads_each_column(tmp_path, tied):
    """An untied embedding is read by the first block, a tied one mostly as the head."""
    bank = captured(tmp_path, tied=tied)
    gradients = bank.work.load("gradients")["columns"]
    head = bank.statistics.hessian("lm_head").diagonal()
    embedding = bank.statistics.importance("model.embed_tokens")
    assert torch.equal(embedding, head if tied else gradients)
    module = "model.layers.1.mlp.down_proj"
    assert torch.equal(
        bank.statistics.importance(module), bank.statistics.hessian(module).diagonal()
    )

    round_layers(bank, {"model.embed_tokens": ["Q4_K"]}, Silent())
    weight = bank.checkpoint.load("model.embed_tokens.weight")
    qtype = qtypes.get("Q4_K")
    expected = qtype.pack(fit(qtype, weight, embedding.contiguous()))
    assert torch.equal(bank.packed("model.embed_tokens", "Q4_K")["data"], expected["data"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL", "4bit-g64"])
def test_a_table_rounded_in_parts_is_the_same_table(tmp_path, monkeypatch, tied, name):
    whole = captured(tmp_path, tied=tied)
    tables = {module: [name] for module in ("model.embed_tokens", "lm_head")[: 2 - tied]}
    round_layers(whole, tables, Silent())
    monkeypatch.setattr(input_work, "TABLE_WEIGHTS", 40 * 256)
    parts = LayerBank(whole.checkpoint, WorkDir(tmp_path / "parts", {}), "nearest")
    shutil.copytree(whole.work.path / "hessians", parts.work.path / "hessians")
    shutil.copy(whole.work.path / "gradients.safetensors", parts.work.path)
    round_layers(parts, tables, Silent())
    for module in tables:
        for part, expected in whole.packed(module, name).items():
            assert torch.equal(parts.packed(module, name)[part], expected)
        (alone,), (together,) = parts.cells(module).values(), whole.cells(module).values()
        assert alone.predicted_kl == pytest.approx(together.predicted_kl, rel=1e-6)


def test_the_bank_says_how_each_matrix_was_rounded_and_what_it_costs(tmp_path, monkeypatch):
    """Where rows are rounded alone; the costs of rows that interact are tested with the others."""
    monkeypatch.setattr(block_moments, "OUTPUTS", 0)
    bank = captured(tmp_path, "full")
    modules = [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    round_layers(bank, {module: ["Q3_K", "4bit-g64"] for module in modules}, Silent())
    for module in modules:
        for name, cell in bank.cells(module).items():
            assert (cell.rounding, cell.kept) == ("gptq", "gptq")
            error = qtypes.get(name).dequantize(bank.packed(module, name))
            error -= bank.checkpoint.load(f"{module}.weight")
            hessian = bank.statistics.hessian(module).unsqueeze(0)
            damped = factorize(hessian, [module], Silent()).natural[0]
            expected = float(bank.statistics.predicted_kl(module, error, damped).sum())
            assert cell.predicted_kl == pytest.approx(expected, rel=0.01)


def test_what_was_chosen_is_polished_and_what_the_search_knew_stays(tmp_path):
    bank = captured(tmp_path, "full")
    module = "model.layers.1.mlp.up_proj"
    round_layers(bank, {module: ["Q3_K", "Q4_K"], "model.embed_tokens": ["Q4_K"]}, Silent())
    rounded, packed = bank.cells(module), bank.packed(module, "Q3_K")
    hessian = bank.statistics.hessian(module)

    def cost():
        error = qtypes.get("Q3_K").dequantize(bank.polished(module, "Q3_K"))
        error -= bank.checkpoint.load(f"{module}.weight")
        return float(bank.statistics.predicted_kl(module, error, hessian).sum())

    before, steps = cost(), []
    for _ in range(2):  # the second time there is nothing left to do
        chosen = {module: ["Q3_K"], "model.embed_tokens": ["Q4_K"]}
        polish_layers(bank, chosen, Recorded(steps))
    assert sum(steps) == pytest.approx(polishing_seconds("Q3_K", bank.weights(module)))
    assert polishing_work(bank, chosen) == 0
    assert cost() < before
    assert torch.equal(packed["data"], bank.packed(module, "Q3_K")["data"])
    assert not torch.equal(packed["data"], bank.polished(module, "Q3_K")["data"])
    assert bank.cells(module) == rounded
    (cell,) = bank.cells(module, POLISHED).values()
    assert (cell.rounding, cell.kept) == ("full", "full")
    assert cell.predicted_kl == rounded["Q3_K"].predicted_kl
    for unpolished in ((module, "Q4_K"), ("model.embed_tokens", "Q4_K")):
        assert torch.equal(bank.packed(*unpolished)["data"], bank.polished(*unpolished)["data"])


def test_matrices_of_one_input_share_its_factorization(tmp_path, monkeypatch):
    bank = captured(tmp_path, "gptq")
    seen = []

    def counted(hessians, names, progress):
        seen.extend(names)
        return factorize(hessians, names, progress)

    monkeypatch.setattr("bitquilt.rounding.input_work.factorize", counted)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
    round_layers(bank, {f"model.layers.0.{name}": ["Q4_K", "Q3_K"] for name in names}, Silent())
    assert seen == ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate_proj"]


def test_two_inputs_go_together_however_large_they_are(tmp_path, monkeypatch):
    seen = []

    def counted(hessians, names, progress):
        seen.append(list(names))
        return factorize(hessians, names, progress)

    monkeypatch.setattr("bitquilt.rounding.input_work.factorize", counted)
    module = "model.layers.{}.mlp.up_proj".format
    memory = MemoryUse(input_bytes=1, cell_weights=1 << 20, least_inputs=2)
    bank = captured(tmp_path, "full")
    round_layers(bank, {module(0): ["Q4_0"], module(1): ["Q4_0"]}, Silent(), memory)
    assert seen == [["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.gate_proj"]]


def test_layers_together_or_one_by_one_have_the_same_bytes(tmp_path):
    module = "model.layers.{}.mlp.up_proj".format
    allocation = {module(0): "Q5_K", module(1): "IQ3_S"}
    packed = []
    for room in (1 << 28, 1):
        memory = MemoryUse(input_bytes=room, cell_weights=room)
        bank = captured(tmp_path / str(room), "full")
        round_layers(bank, {m: ["Q5_K", "IQ3_S"] for m in allocation}, Silent(), memory)
        chosen = {m: [qtype] for m, qtype in allocation.items()}
        polish_layers(bank, chosen, Silent(), memory)
        packed.append([bank.polished(*cell)["data"] for cell in allocation.items()])
    assert all(map(torch.equal, *packed))
