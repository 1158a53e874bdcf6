"""Models that memory cannot hold are refused before anything is converted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquilt.bases import room
from bitquilt.bases.room import GPU_ROOM, refuse_unread_weights, require_memory
from bitquilt.errors import UserError


@pytest.fixture
def directory(tmp_path):
    weights = {
        "model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(32, 32),
        "model.layers.0.mlp.experts.1.up_proj.weight": torch.zeros(32, 32),
        "model.layers.0.mlp.shared_experts.up_proj.weight": torch.zeros(32, 64),
    }
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
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


def test_experts_of_16_bits_stay_in_their_files(directory, monkeypatch):
    path = directory / "model.safetensors"
    save_file({name: one.half() for name, one in load_file(path).items()}, path)
    machine(monkeypatch, 1)
    require_memory(directory)


def test_a_gpu_holds_all_but_experts_of_16_bits(directory, monkeypatch):
    path = directory / "model.safetensors"
    save_file({name: one.bfloat16() for name, one in load_file(path).items()}, path)
    machine(monkeypatch, 1 << 40, GPU_ROOM + 32 * 64 * 2)
    require_memory(directory)
    machine(monkeypatch, 1 << 40, GPU_ROOM + 32 * 64 * 2 - 1)
    with pytest.raises(UserError, match=r"4\.10 kB of weights that the GPU has to hold at once"):
        require_memory(directory)


def test_a_gpu_holds_all_other_weights(directory, monkeypatch):
    machine(monkeypatch, 1 << 40, GPU_ROOM + 4 * 32 * 32 * 4)
    require_memory(directory)
    machine(monkeypatch, 1 << 40, GPU_ROOM + 4 * 32 * 32 * 4 - 1)
    with pytest.raises(UserError, match=r"16\.38 kB of weights.*give .*device.*cpu"):
        require_memory(directory)


def test_weights_that_are_dequantized_take_memory(tmp_path, monkeypatch) -> None:
    weight = torch.ones(64, 32).to(torch.float8_e4m3fn)
    tensors = {"a.weight": weight, "a.weight_scale": torch.ones(64, 1)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    machine(monkeypatch, 64 * 32 * 2)
    require_memory(tmp_path)
    machine(monkeypatch, 64 * 32 * 2 - 1)
    with pytest.raises(UserError, match=r"take 4\.10 kB of memory when they are dequantized, and"):
        require_memory(tmp_path)


def test_what_is_quantized_in_a_way_that_nobody_reads_is_refused_before_it_is_tried(
    tmp_path,
) -> None:
    settings = {"quantization_config": {"quant_method": "hqq"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"by hqq, .*; give the original checkpoint"):
        refuse_unread_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"bits": 4}}))
    refuse_unread_weights(tmp_path)
