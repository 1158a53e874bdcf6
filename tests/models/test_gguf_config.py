"""A config as architecture keys and back: RoPE, windows, and what llama.cpp cannot compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from bitquilt.errors import UserError
from bitquilt.models.architectures import ARCHITECTURES, architecture_of
from bitquilt.models.config import complete
from bitquilt.models.gguf_config import config_of, gguf_keys, gguf_rope_factors
from tests.gguf.headers import in_a_file

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def config(model_type: str = "llama", **fields: Any) -> dict[str, Any]:
    """A complete config of a small model."""
    small = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 512,
        "vocab_size": 512,
    }
    return complete({"model_type": model_type, **small, **fields})


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        *((model_type, {}) for model_type in ARCHITECTURES),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("mistral", {"sliding_window": 4096, "max_position_embeddings": 32768}),
        ("gemma3_text", {"query_pre_attn_scalar": 64, "num_hidden_layers": 62}),
    ],
)
def test_a_config_read_from_its_keys_gives_them_again(
    model_type: str, fields: dict[str, Any]
) -> None:
    if model_type == "gemma3_text":
        fields = {"query_pre_attn_scalar": 64, **fields}
    before = config(model_type, **fields)
    keys = gguf_keys(before)
    name = architecture_of(before).gguf_architecture
    header = in_a_file({"general.architecture": name, **keys}, before["vocab_size"])
    after = complete(config_of(header))
    assert gguf_keys(after) == keys
    same = before.keys() & after.keys() - {"model_type", "bos_token_id", "eos_token_id"}
    same -= {"pad_token_id", "sliding_window", "max_position_embeddings", "tie_word_embeddings"}
    assert {field: after[field] for field in same} == {field: before[field] for field in same}


def test_llama3_factors_are_those_of_transformers() -> None:
    fields = {"rope_parameters": LLAMA3, "max_position_embeddings": 131072}
    factors = gguf_rope_factors(config(**fields))
    reference = LlamaConfig(hidden_size=256, num_attention_heads=4, head_dim=64, **fields)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](reference, torch.device("cpu"))
    plain = LLAMA3["rope_theta"] ** -(torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(torch.from_numpy(factors), plain / scaled)


def test_llama3_scaling_of_qwen_is_refused() -> None:
    with pytest.raises(UserError, match="Llama 3 RoPE scaling for llama models only"):
        gguf_rope_factors(config("qwen3", rope_parameters=LLAMA3))


def test_linear_and_yarn_scaling() -> None:
    linear = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    keys = gguf_keys(config(rope_parameters=linear))
    assert keys["llama.rope.scaling.type"] == "linear"
    assert keys["llama.rope.scaling.factor"] == 4.0
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    }
    keys = gguf_keys(config("qwen3", rope_parameters=yarn))
    assert keys["qwen3.rope.scaling.original_context_length"] == 32768
    with pytest.raises(UserError, match=r"rope_scaling\.beta_fast"):
        gguf_keys(config("qwen3", rope_parameters={**yarn, "beta_fast": 48}))


def test_context_ends_where_a_window_would_matter() -> None:
    keys = gguf_keys(config("mistral", sliding_window=4096, max_position_embeddings=32768))
    assert keys["llama.context_length"] == 4096


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("query_pre_attn_scalar", 128),
        ("final_logit_softcapping", 30.0),
        ("layer_types", ["full_attention"] * 6),
    ],
)
def test_gemma3_as_llamacpp_does_not_run_it(field: str, value: object) -> None:
    gemma = config("gemma3_text", query_pre_attn_scalar=64)
    assert gguf_keys(gemma)["gemma3.rope.freq_base"] == 1e6
    with pytest.raises(UserError, match="give to='mlx'"):
        gguf_keys({**gemma, field: value})
