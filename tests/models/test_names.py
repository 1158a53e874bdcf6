"""Names on both sides, and llama.cpp's conventions for the values."""

from __future__ import annotations

import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.models import layout, names

V0, V11 = (f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 11))


def test_kinds() -> None:
    assert names.kind_of("model.embed_tokens") == "embed_tokens"
    assert names.kind_of(V0) == names.kind_of(V11) == "v_proj"


def test_layers() -> None:
    assert names.layer_of("model.embed_tokens.weight") is None
    assert (names.layer_of(V0), names.layer_of(f"{V11}.bias")) == (0, 11)


def test_a_path_is_a_block_and_a_path_within_it() -> None:
    for layer, module in ((0, V0), (11, V11)):
        assert names.in_block(module) == "self_attn.v_proj"
        assert f"{names.block_path(layer)}.{names.in_block(module)}" == module
    assert names.in_block("lm_head") == "lm_head"


@pytest.mark.parametrize("model_type", layout.MODEL_TYPES)
def test_every_tensor_has_a_name_there_and_back(model_type: str) -> None:
    inside = [f"model.layers.{i}.{name}" for i in (0, 11) for name in layout.BLOCK[model_type]]
    both = [*layout.OUTSIDE, *inside]
    written = [names.gguf_name(name, model_type) for name in both]
    assert len(set(written)) == len(both)
    assert [names.hf_name(name, model_type) for name in written] == both


def test_the_names_llama_cpp_reads() -> None:
    assert names.gguf_name("model.embed_tokens.weight", "qwen3") == "token_embd.weight"
    assert names.gguf_name("model.layers.3.mlp.down_proj", "llama") == "blk.3.ffn_down"
    norm = "model.layers.3.post_attention_layernorm.weight"
    assert names.gguf_name(norm, "llama") == "blk.3.ffn_norm.weight"
    assert names.gguf_name(norm, "gemma3_text") == "blk.3.post_attention_norm.weight"


def test_strangers_are_refused() -> None:
    with pytest.raises(UserError, match="ffn_gate_exps"):
        names.hf_name("blk.0.ffn_gate_exps.weight", "llama")
    with pytest.raises(UserError, match="router"):
        names.gguf_name("model.layers.0.router.weight", "qwen3")


def test_permutation_is_the_converters() -> None:
    heads, head_dim = 3, 8
    rows = torch.randn(heads * head_dim, 5)
    converted = rows.reshape(heads, 2, head_dim // 2, 5).swapaxes(1, 2).reshape(-1, 5)
    permutation = names.permutation(heads, head_dim)
    assert torch.equal(rows[permutation], converted)
    assert torch.equal(converted[permutation.argsort()], rows)
