"""Llama 2 and 3, SmolLM, and whatever else calls itself ``llama``."""

from __future__ import annotations

from bitquilt.gguf.header import GgufHeader
from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import ROPE_SCALING, SWIGLU
from bitquilt.models.architectures.tensors import (
    ATTENTION,
    ATTENTION_BIAS,
    MLP,
    MLP_BIAS,
    NORMS,
    OUTPUT_BIAS,
    switched,
)
from bitquilt.models.config import ModelConfig


def _is_70b(config: ModelConfig) -> bool:
    """80 blocks, and grouped queries, which the 65B of Llama 1 lacks."""
    sharing = config["num_attention_heads"] // config["num_key_value_heads"]
    return bool(config["num_hidden_layers"] == 80 and sharing > 1)


def _biases(header: GgufHeader, config: ModelConfig) -> ModelConfig:
    """A file says by its tensors what a config says by these fields."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


LLAMA = Architecture(
    model_type="llama",
    gguf_architecture="llama",
    block={
        **ATTENTION,
        **switched(ATTENTION_BIAS, "attention_bias"),
        **switched(OUTPUT_BIAS, "attention_bias"),
        **MLP,
        **switched(MLP_BIAS, "mlp_bias"),
        **NORMS,
    },
    conditions=(SWIGLU, *ROPE_SCALING),
    interleaved=True,
    reads_rope_freqs=True,
    is_70b=_is_70b,
    gguf_fields=_biases,
)
