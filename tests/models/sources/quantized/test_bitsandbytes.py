"""What bitsandbytes quantized is read as its own functions read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquilt.errors import UserError
from bitquilt.models.sources.quantized import QuantizedTensor, joined
from bitquilt.models.sources.safetensors import StoredTensor, scan

MADE = Path(__file__).parent / "data" / "bitsandbytes.safetensors"
CONFIG = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
STATE = "nested.weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "kind"), [("plain", "NF4"), ("nested", "NF4"), ("fp4", "FP4"), ("eight", "I8")]
)
def test_matrices_are_what_bitsandbytes_makes_of_them(name: str, kind: str) -> None:
    wanted = load_file(MADE)[f"wanted.{name}"]
    found = joined(scan([MADE]), CONFIG)
    assert {one for one in found if not one.startswith("wanted")} == {
        "plain.weight",
        "nested.weight",
        "fp4.weight",
        "eight.weight",
    }
    matrix = found[f"{name}.weight"]
    assert isinstance(matrix, QuantizedTensor)
    assert matrix.dtype == kind
    assert matrix.shape == wanted.shape == (24, 64)
    assert torch.allclose(matrix.decoded(), wanted.float(), atol=1e-7)


def damaged(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> StoredTensor:
    """The matrix `nested` after a change of the file, decoded."""
    stored = load_file(MADE)
    change(stored)
    path = tmp_path / "model.safetensors"
    save_file(stored, path)
    matrix = joined(scan([path]), CONFIG)["nested.weight"]
    assert isinstance(matrix, QuantizedTensor)
    matrix.decoded()
    return matrix


def stating(**fields: object) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(stored: dict[str, torch.Tensor]) -> None:
        state = json.loads(bytes(stored[STATE].tolist())) | fields
        stored[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("nested.weight.absmax"),
        lambda stored: stored.pop(STATE),
        lambda stored: stored.update({STATE: torch.tensor([123, 1], dtype=torch.uint8)}),
        stating(shape="24, 64"),
        stating(blocksize=0),
    ],
)
def test_a_part_that_is_missing_or_odd_is_said(tmp_path: Path, change) -> None:
    with pytest.raises(UserError, match=r"nested.weight .* a way that bitquilt does not read"):
        damaged(tmp_path, change)


@pytest.mark.parametrize(
    "change",
    [
        stating(shape=[24, 65]),
        stating(nested_blocksize=None),
        lambda stored: stored.pop("nested.weight.nested_quant_map"),
        lambda stored: stored.update({"nested.weight.absmax": torch.zeros(2, dtype=torch.uint8)}),
    ],
)
def test_parts_that_do_not_fit_together_are_said(tmp_path: Path, change) -> None:
    with pytest.raises(UserError, match=r"nested.weight .* do not fit together"):
        damaged(tmp_path, change)
