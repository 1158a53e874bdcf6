"""Tensors are found under whatever was put before their names, and what is no model is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitquilt import UserError
from bitquilt.bases.importance import load_transformers_model
from bitquilt.gguf.header import read_header
from bitquilt.models import open_checkpoint, open_original
from bitquilt.models.inspection import inspect
from tests.bases.models import unknown_checkpoint
from tests.factories import tiny_checkpoint
from tests.streaming.bases import base_file


def renamed(directory: Path, rename) -> Path:
    """The same checkpoint under other names; None leaves a tensor out."""
    weights = load_file(directory / "model.safetensors")
    found = {rename(name): tensor for name, tensor in weights.items()}
    found.pop(None, None)
    save_file(found, directory / "model.safetensors", {"format": "pt"})
    return directory


def with_adapter(directory: Path) -> Path:
    """Put an adapter beside the weights."""
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere/else"}')
    weights = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 256)}
    save_file(weights, directory / "adapter_model.safetensors")
    return directory


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"language_model.{name}",
    ],
)
def test_a_prefix_more_or_less_is_the_same_model(rename, tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    wanted = open_checkpoint(directory).load("model.norm.weight")
    found = open_checkpoint(renamed(directory, rename)).load("model.norm.weight")
    assert torch.equal(found, wanted)


def test_a_backbone_without_a_head_is_named_so(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", layers=1, tied=False)
    renamed(directory, lambda name: None if name == "lm_head.weight" else name)
    with pytest.raises(UserError, match=r"without a head, .*, a model predicts no tokens"):
        open_checkpoint(directory)


def test_an_adapter_is_named_so(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    renamed(directory, lambda name: f"base_model.{name.removesuffix('.weight')}.lora_A.weight")
    with pytest.raises(UserError, match=r"LoRA adapter, .* merge_and_unload"):
        open_checkpoint(directory)


def test_mistrals_own_copy_beside_the_weights_is_left_out(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "mistral", layers=1)
    wanted = open_checkpoint(directory)
    norm = wanted.load("model.norm.weight").clone()
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    save_file(
        {"layers.0.attention.wq.weight": torch.ones(2)}, directory / "consolidated.safetensors"
    )
    found = open_checkpoint(directory)
    assert found.shapes == wanted.shapes
    assert torch.equal(found.load("model.norm.weight"), norm)


def test_an_adapter_beside_whole_weights_is_left_out_and_said_so(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    wanted = open_checkpoint(directory).load("model.norm.weight")
    assert open_checkpoint(directory).to_be_told == []
    with_adapter(directory)
    found = open_checkpoint(directory)
    assert torch.equal(found.load("model.norm.weight"), wanted)
    (said,) = found.to_be_told
    assert "its adapter is left out: files are made of the weights alone" in said
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    assert open_checkpoint(directory).to_be_told == [said]


def test_a_family_without_tables_has_its_names_without_prefixes_and_tells_of_adapters(
    tmp_path: Path,
) -> None:
    directory = unknown_checkpoint(tmp_path, "granite")
    wanted, name = open_original(directory), "model.layers.1.mlp.up_proj.weight"
    weight = wanted.load(name)
    renamed(directory, lambda name: f"_orig_mod.{name}")
    with_adapter(directory)
    found = open_original(directory)
    assert found.shapes == wanted.shapes
    assert torch.equal(found.load(name), weight)
    (said,) = found.to_be_told
    assert "its adapter is left out" in said
    assert "adapter_config.json" in {one.subject for one in inspect(str(directory)).findings}


def test_peft_does_not_put_an_adapter_on_a_model_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = with_adapter(unknown_checkpoint(tmp_path, "granite"))
    wanted = dict(load_file(directory / "model.safetensors"))
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    found = dict(load_transformers_model(directory).named_parameters())
    assert found.keys() <= wanted.keys()
    assert all(torch.equal(one, wanted[name]) for name, one in found.items())


@pytest.mark.parametrize("number", [137, 9999])
def test_a_type_without_a_name_is_no_damage(number: int, tmp_path: Path) -> None:
    path = base_file(tiny_checkpoint(tmp_path, "llama", layers=1), tmp_path / "m.gguf")
    data, name = bytearray(path.read_bytes()), b"blk.0.ffn_down.weight"
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    struct.pack_into("<I", data, at + 4 + 8 * 2, number)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"ffn_down.weight in a type of the number {number}") as no:
        read_header(path)
    assert "damaged" not in str(no.value)


def test_an_index_of_another_time_beside_whole_weights_is_not_followed(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path, "qwen3", layers=1)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_checkpoint(directory).load("model.norm.weight").numel() == 256


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("wrapper", "family", "usual"),
    [("gemma3", "gemma3_text", True), ("mistral3", "mistral", False)],
)
def test_a_wrapper_that_says_nothing_of_tying_has_a_head_or_none(
    wrapper: str, family: str, usual: bool, tied: bool, tmp_path: Path
) -> None:
    directory = tiny_checkpoint(tmp_path, family, layers=1, tied=tied)
    text = json.loads((directory / "config.json").read_text())
    del text["tie_word_embeddings"]
    config = {"model_type": wrapper, "text_config": text, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(config))
    renamed(directory, lambda name: f"language_model.{name}")
    assert open_checkpoint(directory).tied == tied
    (directory / "model.safetensors").unlink()
    assert open_checkpoint(directory).tied == usual  # as the class of its text has it
