"""Matrices of files that stock gguf-py wrote, beside those of the bank."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from bitquilt import plan, qtypes, quantize
from bitquilt.calibration.collect import collect_statistics
from bitquilt.errors import UserError
from bitquilt.models import open_checkpoint
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.rounding import input_work
from bitquilt.rounding.given_cells import GivenCells, offered_types
from bitquilt.rounding.layer_bank import GIVEN, LayerBank
from bitquilt.rounding.nearest import fit
from bitquilt.rounding.round_layers import polish_layers, round_layers
from bitquilt.runtime.progress import Silent
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint
from tests.models import tiny_gguf
from tests.models.tiny_gguf import write_gguf
from tests.progress import Recorded
from tests.quick import QUICK, invoke

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Llama's q and k have another order of rows in GGUF."""
    return tiny_checkpoint(tmp_path_factory.mktemp("given"), "llama", layers=1)


@pytest.fixture(scope="module")
def statistics(source, tmp_path_factory):
    """Work with statistics, from which banks are filled."""
    checkpoint = open_checkpoint(source)
    work = WorkDir(tmp_path_factory.mktemp("bank") / "work", {})
    tokens = torch.randint(3, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    folds = torch.zeros(len(tokens), dtype=torch.int64)
    collect_statistics(BlockwiseModel(checkpoint), tokens, folds, work, Silent())
    return checkpoint, work


@pytest.fixture(scope="module")
def stock(source):
    """What gguf-py rounds without any importance."""
    return write_gguf(source, source.parent / "stock.gguf", kind=Kind.Q4_0)


def test_a_matrix_is_read_as_it_is_packed(stock, source):
    """Decoded by our type, its rows are those that open_checkpoint reads through gguf-py."""
    given = GivenCells.read([stock], open_checkpoint(source))
    weights = open_checkpoint(stock)
    assert given.left_out == []
    assert {qtype for _, qtype in given.cells} == {"Q4_0"}
    assert {module for module, _ in given.cells} == set(weights.matrices)
    for (module, qtype), (cell,) in given.cells.items():
        assert torch.equal(
            qtypes.get(qtype).dequantize(cell.packed()), weights.load(f"{module}.weight")
        )
    assert offered_types([stock, stock])[Q_PROJ] == {"Q4_0"}


def test_a_cell_is_taken_where_it_costs_less(statistics, stock, tmp_path):
    checkpoint, work = statistics
    modules = [Q_PROJ, "model.layers.0.mlp.down_proj"]
    wanted = {module: ["Q4_0"] for module in modules}
    ours = LayerBank(checkpoint, work, "full")
    round_layers(ours, wanted, Silent())
    polish_layers(ours, wanted, Silent())
    polished = {module: ours.polished(module, "Q4_0") for module in modules}
    better = GivenCells({(m, "Q4_0"): [_Fixed(polished[m])] for m in modules}, [], {})
    for name, given in {
        "stock": GivenCells.read([stock], checkpoint),
        "better": better,
    }.items():
        bank = LayerBank(checkpoint, WorkDir(tmp_path / name, {}), "full", given)
        round_layers(bank.reading(ours.statistics), wanted, Silent())
        for module in modules:
            cell, own = bank.cells(module)["Q4_0"], ours.cells(module)["Q4_0"]
            kept = polished[module] if name == "better" else ours.packed(module, "Q4_0")
            assert torch.equal(bank.packed(module, "Q4_0")["data"], kept["data"])
            assert (cell.kept == GIVEN) == (name == "better")
            assert (cell.predicted_kl < own.predicted_kl) == (name == "better")


def test_an_embedding_is_taken_too(statistics, tmp_path, monkeypatch):
    checkpoint, work = statistics
    table, wanted = "model.embed_tokens", {"model.embed_tokens": ["Q4_0"]}
    ours = LayerBank(checkpoint, work, "nearest")
    round_layers(ours, wanted, Silent())
    good, cell = ours.packed(table, "Q4_0"), ours.cells(table)["Q4_0"]
    # a bank whose own tables are rounded badly
    monkeypatch.setattr(input_work, "fit", lambda qtype, weight, _: fit(qtype, 1.2 * weight, None))
    given = GivenCells({(table, "Q4_0"): [_Fixed(good)]}, [], {})
    bank = LayerBank(checkpoint, WorkDir(tmp_path / "bank", {}), "nearest", given)
    round_layers(bank.reading(ours.statistics), wanted, Silent())
    assert torch.equal(bank.packed(table, "Q4_0")["data"], good["data"])
    assert bank.cells(table)["Q4_0"] == replace(cell, kept=GIVEN)


class _Fixed:
    """A matrix in memory, in place of one of a file."""

    def __init__(self, parts):
        self.packed = lambda: parts


def test_what_was_rounded_from_other_weights_is_left_out_by_name(source, tmp_path):
    checkpoint = open_checkpoint(source)
    other = tiny_checkpoint(tmp_path, "llama", layers=1, seed=1)
    with pytest.raises(UserError, match=r"other\.gguf was made from another model than tiny-l"):
        GivenCells.read([write_gguf(other, tmp_path / "other.gguf", kind=Kind.Q8_0)], checkpoint)
    wide = tiny_checkpoint(tmp_path, "llama", layers=1, hidden=512)
    with pytest.raises(UserError, match=r"has 512 × 512 weights there, and 512 × 256 here"):
        GivenCells.read([write_gguf(wide, tmp_path / "wide.gguf", kind=Kind.Q8_0)], checkpoint)
    with pytest.raises(UserError, match="has no quantized matrix of tiny-llama"):
        GivenCells.read([write_gguf(source, tmp_path / "plain.gguf", kind=Kind.F16)], checkpoint)


def test_one_matrix_of_others_is_named(source, tmp_path, monkeypatch):
    real = tiny_gguf._convert

    def changed(name, tensor, config):
        return real(name, tensor * (1.2 if "down_proj" in name else 1), config)

    monkeypatch.setattr(tiny_gguf, "_convert", changed)
    path = write_gguf(source, tmp_path / "changed.gguf", kind=Kind.Q8_0)
    given = GivenCells.read([path], open_checkpoint(source))
    (said,) = given.left_out
    assert f"model.layers.0.mlp.down_proj of {path} are not used: their error is more than" in said
    assert ("model.layers.0.mlp.down_proj", "Q8_0") not in given.cells
    assert (Q_PROJ, "Q8_0") in given.cells


def test_a_whole_run_takes_them(source, stock, tmp_path):
    """What feedback made is better than nearest rounding, which is better than gguf-py's."""
    asked = {"recipe": "Q4_0", **QUICK, "progress": Silent()}
    good = quantize(source, **asked, output=tmp_path / "good").outputs[0].path
    told = Recorded()
    asked |= {"progress": told, "rounding": "nearest", "output": tmp_path / "out"}
    path = quantize(source, **asked, cells=[good, stock]).outputs[0].path
    ours, given = (tensors_of(one) for one in (path, good))
    same = [name for name, tensor in ours.items() if np.array_equal(tensor, given[name])]
    blocks = [name for name in same if name.startswith("blk.") and "norm" not in name]
    assert {f"blk.0.attn_{name}.weight" for name in ("q", "k", "v", "output")} <= {*blocks}
    assert f"Q4_0 for gguf: {len(blocks)} of 8 matrices come from --cells" in told.lines
    with pytest.raises(UserError, match="cells"):  # the bank was filled with them
        quantize(source, **asked)


def tensors_of(path):
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def test_a_type_that_a_file_offers_is_a_candidate(source, stock, tmp_path, capfd):
    """Q4_0 is superseded elsewhere."""
    (alone,) = plan(source, bits=4.6)
    (offered,) = plan(source, bits=4.6, cells=[stock])
    assert not any("Q4_0" in own for own in alone.space.candidates.values())
    assert all("Q4_0" in own for own in offered.space.candidates.values())
    other = tmp_path / "recipe.json"
    other.write_text("{}")
    assert invoke("plan", source, "--bits", "4.6", "--cells", other) == 2
    assert "is not a GGUF file, and matrices are taken from such files" in capfd.readouterr().err
