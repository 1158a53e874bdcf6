"""Mixes of files that anybody made: as recipes, for other tools, side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.nn as nn
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from mlx_lm.utils import quantize_model

from bitquilt import qtypes
from bitquilt.allocation.recipe import parse_recipe, resolve_recipe
from bitquilt.allocation.recipe_export import FORMS, exported
from bitquilt.allocation.stored_mix import (
    allocation_of,
    pairs_of,
    stored_mix,
    taken_recipe,
    types_by_module,
)
from bitquilt.cli.recipe import FORM_NAMES
from bitquilt.errors import UserError
from bitquilt.evaluation.model_file import ModelFile
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.targets import GGUF, MLX
from tests.shapes import shaped_checkpoint
from tests.streaming.models import tensors, write_model

TYPES = {
    "token_embd": "Q8_0",
    "blk.0.attn_q": "Q4_K",
    "blk.0.attn_v": "Q6_K",
    "blk.0.ffn_down": "Q1_0",
    "blk.0.ffn_up": "Q4_K",
    "blk.0.ffn_gate": "F16",
}


def gguf_file(folder: Path, types: dict[str, str], architecture: str = "llama") -> Path:
    """A file with matrices of 4 rows of 256 on these types, as gguf-py writes it."""
    path = folder / "theirs.gguf"
    writer = GGUFWriter(path, architecture)
    for name, qtype in types.items():
        kind = GGMLQuantizationType[qtype]
        numbers = np.ones((4, 256), np.float32)
        if qtype in GGUF_BYTES:  # which gguf-py does not write
            numbers = np.zeros((4, GGUF_BYTES[qtype]), np.uint8)
        else:
            numbers = quants.quantize(numbers, kind)
        writer.add_tensor(f"{name}.weight", numbers, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_BYTES = {"Q4_K": 144, "Q6_K": 210, "Q1_0": 36}


def mlx_directory(folder: Path) -> Path:
    """What mlx-lm's config and safetensors say of two matrices on types and one on none."""
    folder.mkdir()
    entries = {"group_size": 64, "bits": 4, "mode": "affine", "model.layers.0.mlp.up_proj": {
        "group_size": 32, "bits": 6, "mode": "affine"}}  # fmt: skip
    config = {"model_type": "llama", "quantization": entries, "quantization_config": entries}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {}
    for module, bits, group in (
        ("model.layers.0.mlp.down_proj", 4, 64),
        ("model.layers.0.mlp.up_proj", 6, 32),
    ):
        linear = nn.QuantizedLinear(256, 4, bias=False, bits=bits, group_size=group)
        weights |= {f"{module}.{name}": value for name, value in linear.parameters().items()}
    weights["model.embed_tokens.weight"] = nn.Embedding(4, 256).weight
    import mlx.core as mx

    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def test_a_file_of_any_architecture_is_read(tmp_path: Path) -> None:
    mix = stored_mix(gguf_file(tmp_path, TYPES, "some-future-model"))
    assert {matrix.name: matrix.qtype for matrix in mix.matrices} == TYPES
    assert mix.nbytes == (tmp_path / "theirs.gguf").stat().st_size
    assert [m.nbytes for m in mix.matrices][1] == qtypes.get("Q4_K").nbytes(4, 256)


def test_all_parts_of_a_split_file_are_counted(tmp_path: Path) -> None:
    weights = tensors()
    first = write_model(tmp_path / "theirs.gguf", weights, parts=3)
    mix, nbytes = stored_mix(first), sum(part.stat().st_size for part in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 3
    assert mix.nbytes == ModelFile.at(first).nbytes == nbytes
    whole = stored_mix(write_model(tmp_path / "whole.gguf", weights))
    assert [m.name for m in mix.matrices] == [m.name for m in whole.matrices]


def test_an_mlx_directory_is_read(tmp_path: Path) -> None:
    mix = stored_mix(mlx_directory(tmp_path / "theirs"))
    found = {m.name: (m.qtype, m.rows, m.columns, m.nbytes) for m in mix.matrices}
    assert found["model.layers.0.mlp.down_proj"][:3] == ("4bit-g64", 4, 256)
    assert found["model.layers.0.mlp.up_proj"][:3] == ("6bit-g32", 4, 256)
    assert found["model.embed_tokens"][:3] == ("F32", 4, 256)
    assert found["model.layers.0.mlp.up_proj"][3] >= qtypes.get("6bit-g32").nbytes(4, 256)


def test_a_recipe_says_what_it_cannot_take(tmp_path: Path) -> None:
    taken = taken_recipe(stored_mix(gguf_file(tmp_path, TYPES)))
    recipe = json.loads(taken.recipe.to_json())
    assert recipe["default"] == "Q4_K"
    assert recipe["pin"] == {
        "token_embd": "Q8_0", "blk.0.attn_v": "Q6_K", "blk.0.ffn_gate": "BF16",
        "blk.0.ffn_down": "IQ1_S",
    }  # fmt: skip
    (note,) = taken.notes
    assert note == "blk.0.ffn_down: bitquilt does not write Q1_0, so IQ1_S is taken"


def test_a_recipe_for_another_model_of_the_family(tmp_path: Path) -> None:
    """Rows of 576 take no K-quants, and a second block has what most of the first have."""
    mix = stored_mix(gguf_file(tmp_path, {**TYPES, "blk.7.attn_q": "Q5_0"}))
    checkpoint = shaped_checkpoint(width=576, heads=9, kv_heads=3, mlp=1536)
    taken = taken_recipe(mix, checkpoint)
    allocation = resolve_recipe(parse_recipe(taken.recipe.to_json(), "it"), checkpoint, "gguf")
    first = "model.layers.0"
    assert allocation["model.embed_tokens"] == "Q8_0"
    assert allocation[f"{first}.self_attn.q_proj"] == "IQ4_NL"
    assert allocation[f"{first}.mlp.down_proj"] == "IQ1_S"
    notes = "\n".join(taken.notes)
    assert "their rows are not a multiple of the block of Q4_K, so IQ4_NL is taken" in notes
    assert "model.layers.7.self_attn.q_proj" in notes
    assert "theirs.gguf does not have them" in notes


def llama_quantize_reads(text: str) -> list[tuple[str, GgmlType]]:
    """parse_tensor_type of llama.cpp's tools/quantize: words, split at the first =."""
    found = []
    for word in text.split():
        name, _, qtype = word.partition("=")
        assert name
        assert qtype
        kinds = {kind.name.lower(): kind for kind in GgmlType}
        found.append((name.lower(), kinds[qtype.lower()]))
    return found


def chosen_by(rules: list[tuple[str, GgmlType]], name: str) -> str:
    """The first regex that is found in the tensor's name, as in src/llama-quant.cpp."""
    return next(kind.name for pattern, kind in rules if re.search(pattern, name))


def test_llama_quantize_and_ik_llama_read_what_is_exported(tmp_path: Path) -> None:
    many = TYPES | {f"blk.{n}.attn_q": "Q6_K" for n in (1, 10, 11)}
    path = gguf_file(tmp_path, many)
    allocation = allocation_of(path, None, GGUF)
    lines = llama_quantize_reads(exported(allocation, "tensor-type-file"))
    commas = exported(allocation, "custom-q").strip().split(",")
    for rules in (lines, llama_quantize_reads("\n".join(commas))):
        assert {name: chosen_by(rules, f"{name}.weight") for name in many} == many


def test_mlx_lm_takes_the_predicate() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj = nn.Linear(64, 64, bias=False)
            self.down_proj = nn.Linear(64, 64, bias=False)
            self.embed_tokens = nn.Embedding(8, 64)

    allocation = {"up_proj": "6bit-g32", "down_proj": "mxfp4", "embed_tokens": "BF16"}
    entries = json.loads(exported(allocation, "mlx-lm"))
    model, config = quantize_model(Tiny(), {}, 32, 4, quant_predicate=lambda path, _: entries[path])
    assert config["quantization"]["up_proj"] == {"group_size": 32, "bits": 6, "mode": "affine"}
    assert (model.up_proj.bits, model.down_proj.mode) == (6, "mxfp4")
    assert isinstance(model.embed_tokens, nn.Embedding)
    assert not isinstance(model.embed_tokens, nn.QuantizedEmbedding)


def test_recipes_are_exported_for_a_model(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.json"
    recipe.write_text('{"default": {"gguf": "Q4_K", "mlx": "4bit-g64"}}')
    checkpoint = shaped_checkpoint()
    assert allocation_of(recipe, checkpoint, GGUF)["token_embd"] == "Q4_K"
    assert allocation_of(recipe, checkpoint, MLX)["model.embed_tokens"] == "4bit-g64"
    assert types_by_module(recipe, checkpoint)["model.embed_tokens"] == "Q4_K"
    with pytest.raises(UserError, match="depends on the model; name the model"):
        allocation_of(recipe, None, GGUF)
    with pytest.raises(UserError, match="is a gguf model, and mlx was asked for"):
        allocation_of(gguf_file(tmp_path, TYPES), None, MLX)
    with pytest.raises(UserError, match="choose tensor-type-file, custom-q, mlx-lm"):
        exported({}, "unknown")
    assert tuple(FORMS) == FORM_NAMES


def test_two_files_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = {name: "Q8_0" for name in TYPES if name != "blk.0.attn_v"}
    one, two = (
        stored_mix(gguf_file(folder, types))
        for folder, types in ((tmp_path, TYPES), (tmp_path / "other", other))
    )
    pairs = {pair.module: pair for pair in pairs_of(one, two)}
    assert not pairs["model.embed_tokens"].differs
    assert pairs["model.layers.0.self_attn.v_proj"].types == ("Q6_K", None)
    assert pairs["model.layers.0.self_attn.q_proj"].nbytes == (576, 1088)


def test_what_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a model file"):
        stored_mix(tmp_path)
