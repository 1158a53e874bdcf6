"""A stack of experts takes no memory until it is read, and reads as transformers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

from bitquilt.bases import deferred_stacks
from bitquilt.bases.deferred_stacks import (
    DeferredStack,
    LastStacks,
    deferring,
    float_numbers,
    keep_float,
    matrix_of,
    moved_model,
    read_with,
)
from bitquilt.bases.importance import load_transformers_model
from bitquilt.bases.lent_weights import lent_weights
from tests.bases.models import unknown_checkpoint
from tests.bases.test_lent_weights import collected

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that runs CUDA")


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


@pytest.mark.parametrize("kind", ["qwen3_moe", "nemotron_h"])
def test_a_model_reads_the_same_with_a_few_stacks_on_a_device(kind: str, tmp_path: Path) -> None:
    """As a GPU has them; forward, back, and against stacks that transformers put together."""
    model, _ = loaded(tmp_path, kind, torch.bfloat16)
    whole = load_transformers_model(tmp_path / kind, least=0)
    assert lent_weights(whole).keep()
    last = LastStacks(torch.device("cpu"), 0)
    read_with(model, last)
    read_with(model, LastStacks(torch.device("cpu"), 0))  # changes nothing
    wanted, found = collected(whole, tmp_path / "whole"), collected(model, tmp_path / "few")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    stacks = stacks_of(model)
    assert {nbytes(one) for one in stacks.values()} == {2}
    assert 0 < last.nbytes < sum(2 * one.numel() for one in stacks.values())
    for name, one in stacks.items():
        keep_float(one)
        assert torch.equal(one, whole.get_parameter(name))


def test_stacks_are_read_again_when_there_is_no_room_for_them() -> None:
    class Watched(DeferredStack):
        """Counts how often it is read."""

        def fill(self, experts: Tensor, start: int) -> None:
            times[id(self)] = times.get(id(self), 0) + 1
            super().fill(experts, start)

    def read(most: int, order: list[int]) -> list[int]:
        times.clear()
        last = LastStacks(torch.device("cpu"), most)
        for number in order:
            assert torch.equal(last.numbers(stacks[number])[1], torch.full((3, 4), number + 2.0))
        return [times.get(id(one), 0) for one in stacks]

    times: dict[int, int] = {}
    stacks = [
        Watched(tuple((torch.full((3, 4), i + j + 1.0).half(),) for i in range(2)))
        for j in range(3)
    ]
    assert stacks[0].nbytes == 2 * 3 * 4 * 2
    assert read(0, [0, 1, 0, 1, 2, 1, 0]) == [2, 1, 1]
    assert read(3 * stacks[0].nbytes, [0, 1, 2, 0, 1, 2]) == [1, 1, 1]
    assert read(3 * stacks[0].nbytes - 1, [0, 1, 2, 0, 1, 2]) == [2, 2, 2]


def test_on_the_cpu_a_model_stays_what_it_is(tmp_path: Path) -> None:
    model, own = loaded(tmp_path, "qwen3_moe", torch.bfloat16)
    assert moved_model(model, torch.device("cpu")) is model
    for name, one in stacks_of(model).items():
        assert torch.equal(float_numbers(one), own.get_parameter(name).float())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_a_stack_comes_onto_a_device_piece_by_piece(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = torch.arange(7 * 5 * 4).view(7, 5, 4).bfloat16()
    stack = DeferredStack(tuple((one[:2], one[2:]) for one in experts))
    assert stack.shape == experts.shape
    for experts_at_once in (0, 1, 3, 8):
        monkeypatch.setattr(deferred_stacks, "PIECE_BYTES", experts_at_once * experts[0].nbytes)
        found = LastStacks(torch.device(device), 0).numbers(stack)
        assert found.device.type == device
        assert torch.equal(found.cpu(), experts)
