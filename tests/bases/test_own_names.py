"""What converters do not read as it is stored, they read in another form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bitquilt.bases.converter import convert
from bitquilt.bases.importance import load_transformers_model, require_class
from bitquilt.bases.mlx_base import MlxBase, convert_to_mlx
from bitquilt.bases.own_names import as_transformers_saves, with_bare_names, with_own_names
from bitquilt.errors import UserError
from tests.bases.models import needs_converter, unknown_checkpoint
from tests.bases.parity import transformers_logits

HALF = torch.bfloat16


def tensors_of(directory: Path) -> Mapping[str, Tensor]:
    return load_file(directory / "model.safetensors")


def test_own_names_are_those_of_the_class(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "mixtral", HALF)  # an expert has a matrix of its own
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    wanted = {name: one.shape for name, one in model.named_parameters()}
    stored = tensors_of(directory)
    with with_own_names(directory, tmp_path / "made") as copy:
        found = tensors_of(copy)
        assert {name: one.shape for name, one in found.items()} == wanted
        stack = found["model.layers.1.mlp.experts.down_proj"]
    assert stored.keys() != wanted.keys()
    assert torch.equal(stack[3], stored["model.layers.1.block_sparse_moe.experts.3.w2.weight"])
    assert not copy.exists()


def test_bare_names_have_no_prefix(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "gpt2", HALF)
    stored = tensors_of(directory)
    with with_bare_names(directory, tmp_path / "made") as copy:
        found = tensors_of(copy)
    assert {f"transformer.{name}" for name in found} == stored.keys()


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen3_asr", "kimi_k25", "mixtral"])
def test_a_language_model_alone_computes_the_same(kind: str, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, kind)
    with as_transformers_saves(directory, tmp_path / "made") as copy:
        alone = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
        assert "text_config" not in json.loads((copy / "config.json").read_text("utf-8"))
    whole = transformers_logits(load_transformers_model(directory))
    assert transformers_logits(alone) == pytest.approx(whole, abs=1e-5)


def test_a_language_model_without_a_class_is_refused(tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, "qwen3_vl")
    with (
        pytest.raises(UserError, match="no class for the language model"),
        as_transformers_saves(directory, tmp_path / "made"),
    ):
        pass
    assert not list(tmp_path.glob(".*"))


def test_a_type_that_writes_no_text_is_refused_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="it has no class of T5Config that writes text"):
        require_class(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "audioflamingo3"}')
    require_class(tmp_path)  # which transformers counts among those of sequences to sequences


@pytest.mark.parametrize("kind", ["gpt2", "qwen2_audio"])
def test_mlx_lm_converts_them(kind: str, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, kind, HALF)
    said: list[str] = []
    convert_to_mlx(directory, tmp_path / "made", said.append)
    assert len(MlxBase(tmp_path / "made")) > 8
    (told,) = said
    assert told.startswith(
        f"mlx-lm does not read {directory.name} as it is stored, so it was given"
    )


@needs_converter
@pytest.mark.parametrize("kind", ["mpt", "granite_speech"])  # the first by its authors' capitals
def test_llama_cpp_converts_them(kind: str, tmp_path: Path) -> None:
    directory = unknown_checkpoint(tmp_path, kind, HALF)
    said: list[str] = []
    convert(directory, tmp_path / "made.gguf", said.append)
    assert (tmp_path / "made.gguf").stat().st_size > 1 << 18
    assert ["as transformers saves it" in one for one in said] == [True] * (kind != "mpt")
