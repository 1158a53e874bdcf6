"""Names on both sides, and llama.cpp's conventions for the values."""

from __future__ import annotations

import gguf
import pytest
import torch

from bitquilt.errors import UserError
from bitquilt.models import names
from bitquilt.models.architectures import ARCHITECTURES, Architecture
from bitquilt.models.architectures.rotation import permutation
from bitquilt.models.architectures.tensors import OUTSIDE

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


@pytest.mark.parametrize("family", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_tensor_has_a_name_there_and_back(family: Architecture) -> None:
    inside = [f"{names.block_path(i)}.{name}" for i in (0, 11) for name in family.block]
    both = [*OUTSIDE, *inside]
    written = [family.gguf_name(name) for name in both]
    assert len(set(written)) == len(both)
    assert [family.hf_name(name) for name in written] == both


@pytest.mark.parametrize("family", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_names_are_those_of_gguf_py(family: Architecture) -> None:
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    theirs = gguf.get_tensor_name_map(architectures[family.gguf_architecture], 12)
    for name in (*OUTSIDE, *(f"{names.block_path(11)}.{name}" for name in family.block)):
        expected = theirs.get_name(name, try_suffixes=(".weight", ".bias"))
        assert family.gguf_name(name) == expected
        module, _, suffix = name.rpartition(".")
        assert family.gguf_name(module) == expected.removesuffix(f".{suffix}")


def test_the_names_llama_cpp_reads() -> None:
    llama, gemma = ARCHITECTURES["llama"], ARCHITECTURES["gemma3_text"]
    assert ARCHITECTURES["qwen3"].gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert llama.gguf_name("model.layers.3.mlp.down_proj") == "blk.3.ffn_down"
    norm = "model.layers.3.post_attention_layernorm.weight"
    assert llama.gguf_name(norm) == "blk.3.ffn_norm.weight"
    assert gemma.gguf_name(norm) == "blk.3.post_attention_norm.weight"


@pytest.mark.parametrize(
    "stranger", ["blk.0.ffn_gate_exps.weight", "attn_q.weight", "blk.0.output.weight", "blk.x"]
)
def test_strangers_in_a_file_are_refused(stranger: str) -> None:
    with pytest.raises(UserError, match=stranger):
        ARCHITECTURES["llama"].hf_name(stranger)


@pytest.mark.parametrize("stranger", ["model.layers.0.router.weight", "self_attn.q_proj.weight"])
def test_strangers_in_a_checkpoint_are_refused(stranger: str) -> None:
    with pytest.raises(UserError, match=stranger):
        ARCHITECTURES["qwen3"].gguf_name(stranger)


def test_permutation_is_the_converters() -> None:
    heads, head_dim = 3, 8
    rows = torch.randn(heads * head_dim, 5)
    converted = rows.reshape(heads, 2, head_dim // 2, 5).swapaxes(1, 2).reshape(-1, 5)
    order = permutation(heads, head_dim)
    assert torch.equal(rows[order], converted)
    assert torch.equal(converted[order.argsort()], rows)
