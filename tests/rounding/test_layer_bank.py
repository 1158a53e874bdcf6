"""The layer bank as a store: what is put in comes out, by matrix, type and folder."""

from pathlib import Path

import pytest
import torch

from bitquilt.models import open_checkpoint
from bitquilt.rounding.layer_bank import POLISHED, ROUNDED, BankCell, LayerBank
from bitquilt.runtime.workdir import WorkDir
from tests.factories import tiny_checkpoint

QUERY, KEY = (f"model.layers.0.self_attn.{kind}_proj" for kind in "qk")
CELL = BankCell(0.5, "gptq", "nearest")


def packed(number):
    return {"data": torch.full((2, 3), number, dtype=torch.uint8)}


@pytest.fixture
def bank(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    return LayerBank(checkpoint, WorkDir(tmp_path / "work", {}), "full")


def test_an_empty_bank_knows_nothing(bank):
    assert bank.cells(QUERY) == {}


def test_each_adding_to_one_input_is_one_artefact_and_none_is_written_again(bank):
    bank.add(ROUNDED, {(QUERY, "Q4_K"): (packed(1), CELL)})
    bank.add(ROUNDED, {(KEY, "Q4_K"): (packed(2), CELL), (QUERY, "Q8_0"): (packed(3), CELL)})
    written = {path.relative_to(bank.work.path) for path in bank.work.path.rglob("*.safetensors")}
    assert written == {Path(ROUNDED, QUERY, f"{n}.safetensors") for n in range(2)}
    assert bank.cells(QUERY) == {"Q4_K": CELL, "Q8_0": CELL}
    assert bank.cells(KEY) == {"Q4_K": CELL}
    for key, number in (((QUERY, "Q4_K"), 1), ((KEY, "Q4_K"), 2), ((QUERY, "Q8_0"), 3)):
        assert torch.equal(bank.packed(*key)["data"], packed(number)["data"])


def test_what_is_polished_is_beside_what_the_search_knows(bank):
    bank.add(ROUNDED, {(QUERY, "Q4_K"): (packed(1), CELL), (QUERY, "Q8_0"): (packed(2), CELL)})
    bank.add(POLISHED, {(QUERY, "Q4_K"): (packed(3), CELL)})
    assert set(bank.cells(QUERY, POLISHED)) == {"Q4_K"}
    assert torch.equal(bank.packed(QUERY, "Q4_K")["data"], packed(1)["data"])
    assert torch.equal(bank.polished(QUERY, "Q4_K")["data"], packed(3)["data"])
    assert torch.equal(bank.polished(QUERY, "Q8_0")["data"], packed(2)["data"])


def test_of_what_a_search_chose_from_only_a_mix_stays(bank):
    bank.add(ROUNDED, {(QUERY, "Q4_K"): (packed(1), CELL), (QUERY, "Q8_0"): (packed(2), CELL)})
    bank.add(ROUNDED, {(KEY, "Q4_K"): (packed(3), CELL)})
    bank.add(POLISHED, {(QUERY, "Q4_K"): (packed(4), CELL)})
    mixes = [{QUERY: "Q4_K", KEY: "Q4_K"}] * 2
    assert bank.lacks(mixes) == {KEY: ["Q4_K"]}
    bank.keep_only(mixes)
    assert not bank.lacks(mixes)
    assert bank.cells(QUERY) == bank.cells(KEY) == {}
    assert bank.cells(QUERY, POLISHED) == bank.cells(KEY, POLISHED) == {"Q4_K": CELL}
    for module, number in ((QUERY, 4), (KEY, 3)):
        assert torch.equal(bank.polished(module, "Q4_K")["data"], packed(number)["data"])
