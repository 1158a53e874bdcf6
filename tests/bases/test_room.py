"""Models that memory cannot hold are refused before anything is converted."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bitquilt.bases import room
from bitquilt.bases.room import GPU_ROOM, refuse_unconverted, require_memory
from bitquilt.errors import UserError


@pytest.fixture
def directory(tmp_path):
    weights = {
        "model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(32, 32),
        "model.layers.0.mlp.experts.1.up_proj.weight": torch.zeros(32, 32),
        "model.layers.0.mlp.shared_experts.up_proj.weight": torch.zeros(32, 64),
    }
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def machine(monkeypatch, memory, gpu=0):
    monkeypatch.setattr(room, "memory_of_machine", lambda: memory)
    monkeypatch.setattr(room, "gpu_memory", lambda: gpu)


def test_experts_that_are_stored_one_by_one_take_memory(directory, monkeypatch):
    machine(monkeypatch, 2 * 32 * 32 * 4)
    require_memory(directory)
    machine(monkeypatch, 2 * 32 * 32 * 4 - 1)
    with pytest.raises(UserError, match=r"takes 8\.19 kB, and this machine has .*imatrix.*FILE"):
        require_memory(directory)


def test_a_gpu_holds_all_weights(directory, monkeypatch):
    machine(monkeypatch, 1 << 40, GPU_ROOM + 4 * 32 * 32 * 4)
    require_memory(directory)
    machine(monkeypatch, 1 << 40, GPU_ROOM + 4 * 32 * 32 * 4 - 1)
    with pytest.raises(UserError, match=r"16\.38 kB of weights.*give .*device.*cpu"):
        require_memory(directory)


@pytest.mark.parametrize("field", ["quantization", "quantization_config"])
def test_what_no_converter_dequantizes_is_refused_before_it_is_tried(field, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({field: {"bits": 4, "group_size": 64}}))
    with pytest.raises(UserError, match=r"by mlx-lm, .*; give the original checkpoint"):
        refuse_unconverted(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({field: {"quant_method": "fp8"}}))
    refuse_unconverted(tmp_path)
