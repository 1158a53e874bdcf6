"""A stack of experts takes no memory until it is read, and reads as transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

from bitquilt.bases.deferred_stacks import deferring, float_numbers, keep_float, matrix_of
from bitquilt.bases.importance import load_transformers_model
from tests.bases.models import unknown_checkpoint


def stacks_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if name.endswith("_proj")}


def nbytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def loaded(tmp_path: Path, kind: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Our model, and transformers' own."""
    directory = unknown_checkpoint(tmp_path, kind, dtype)
    own = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return load_transformers_model(directory, least=0), own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["qwen3_moe", "lfm2_moe", "nemotron_h"])
def test_a_stack_takes_no_memory_and_reads_equal(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, own = loaded(tmp_path, kind, dtype)
    stacks = stacks_of(model)
    assert len(stacks) > 1
    for one in stacks.values():
        assert nbytes(one) == dtype.itemsize
        assert one.isnan().all()  # what reads it otherwise is seen
    for name, wanted in own.named_parameters():
        found = model.get_parameter(name)
        assert found.shape == wanted.shape
        assert torch.equal(float_numbers(found), wanted.float())
        if wanted.ndim > 1 and name in stacks:
            for index, matrix in enumerate(wanted):
                assert torch.equal(matrix_of(found, index), matrix)


def test_what_is_kept_in_float32_is_deferred_no_longer(tmp_path: Path) -> None:
    model, own = loaded(tmp_path, "qwen3_moe", torch.bfloat16)
    for name, one in stacks_of(model).items():
        keep_float(one)
        wanted = own.get_parameter(name).float()
        assert torch.equal(one, wanted)
        assert torch.equal(matrix_of(one, 1), wanted[1])


def test_float32_is_stacked_as_transformers_does(tmp_path: Path) -> None:
    model, own = loaded(tmp_path, "qwen3_moe", torch.float32)
    assert all(torch.equal(one, own.get_parameter(name)) for name, one in stacks_of(model).items())


def test_other_operations_stay() -> None:
    others = [
        WeightConverter("a.*.b", "c", [MergeModulelist(dim=1)]),
        WeightConverter("a.*.b", "c", [MergeModulelist(dim=0), Transpose(1, 2)]),
        WeightConverter(["a", "b"], "c", [Concatenate(dim=1)]),
    ]
    assert deferring(others) == others


def test_experts_of_unequal_shapes_are_left_to_transformers() -> None:
    (own,) = deferring([WeightConverter("a.*.b", "c", [MergeModulelist(dim=0)])])
    tensors = [torch.ones(rows, 3, dtype=torch.bfloat16) for rows in (2, 4)]
    with pytest.raises(RuntimeError, match="equal size"):
        own.operations[0].convert({"a.*.b": tensors}, ["a.*.b"], ["c"])
