"""Which tensors each canonical architecture has, and their shapes from the config alone.

Letters: V vocabulary, D model width, Q query rows (heads * head_dim), K key rows
(KV heads * head_dim), H head_dim, M MLP width.
"""

from __future__ import annotations

from typing import Any

OUTSIDE: dict[str, str] = {
    "model.embed_tokens.weight": "VD",
    "model.norm.weight": "D",
    "lm_head.weight": "VD",
}
"""Tensors outside the blocks; a tied head has no tensor."""

_ATTENTION = {
    "self_attn.q_proj.weight": "QD",
    "self_attn.k_proj.weight": "KD",
    "self_attn.v_proj.weight": "KD",
    "self_attn.o_proj.weight": "DQ",
}
_ATTENTION_BIAS = {
    "self_attn.q_proj.bias": "Q",
    "self_attn.k_proj.bias": "K",
    "self_attn.v_proj.bias": "K",
}
_OUTPUT_BIAS = {"self_attn.o_proj.bias": "D"}
_QK_NORM = {"self_attn.q_norm.weight": "H", "self_attn.k_norm.weight": "H"}
_MLP = {
    "mlp.gate_proj.weight": "MD",
    "mlp.up_proj.weight": "MD",
    "mlp.down_proj.weight": "DM",
}
_MLP_BIAS = {"mlp.gate_proj.bias": "M", "mlp.up_proj.bias": "M", "mlp.down_proj.bias": "D"}
_NORMS = {"input_layernorm.weight": "D", "post_attention_layernorm.weight": "D"}
_GEMMA_NORMS = {"pre_feedforward_layernorm.weight": "D", "post_feedforward_layernorm.weight": "D"}

BLOCK: dict[str, dict[str, str]] = {
    "llama": {**_ATTENTION, **_ATTENTION_BIAS, **_OUTPUT_BIAS, **_MLP, **_MLP_BIAS, **_NORMS},
    "mistral": {**_ATTENTION, **_MLP, **_NORMS},
    "qwen2": {**_ATTENTION, **_ATTENTION_BIAS, **_MLP, **_NORMS},
    "qwen3": {**_ATTENTION, **_QK_NORM, **_MLP, **_NORMS},
    "gemma3_text": {**_ATTENTION, **_QK_NORM, **_MLP, **_NORMS, **_GEMMA_NORMS},
}
"""Every tensor that a block of the architecture may have; the config switches llama's biases."""

MODEL_TYPES = tuple(BLOCK)

FIELDS = {
    "V": "vocab_size",
    "D": "hidden_size",
    "Q": "num_attention_heads * head_dim",
    "K": "num_key_value_heads * head_dim",
    "H": "head_dim",
    "M": "intermediate_size",
}
"""Letter → the config fields that decide it."""


def head_dim(config: dict[str, Any]) -> int:
    """Width of one attention head."""
    stated = config.get("head_dim")
    return int(stated or config["hidden_size"] // config["num_attention_heads"])


def letters(config: dict[str, Any]) -> dict[str, str]:
    """Tensor name → letters of its dimensions, in order: embedding, blocks, norm, head."""
    inside = {
        name: dims
        for name, dims in BLOCK[config["model_type"]].items()
        if not (name.endswith(".bias") and _switched_off(config, name))
    }
    found = {"model.embed_tokens.weight": "VD"}
    for layer in range(config["num_hidden_layers"]):
        found.update({f"model.layers.{layer}.{name}": dims for name, dims in inside.items()})
    found["model.norm.weight"] = "D"
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = "VD"
    return found


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor name → shape of every tensor that a model with this canonical config has."""
    size = sizes(config)
    return {name: tuple(size[d] for d in dims) for name, dims in letters(config).items()}


def sizes(config: dict[str, Any]) -> dict[str, int]:
    """Letter → size."""
    width = head_dim(config)
    return {
        "V": int(config["vocab_size"]),
        "D": int(config["hidden_size"]),
        "Q": int(config["num_attention_heads"]) * width,
        "K": int(config["num_key_value_heads"]) * width,
        "H": width,
        "M": int(config["intermediate_size"]),
    }


def _switched_off(config: dict[str, Any], bias: str) -> bool:
    """Qwen 2 always has its q, k and v biases; the others say so in their config."""
    if config["model_type"] == "qwen2":
        return False
    return not config.get("attention_bias" if "self_attn" in bias else "mlp_bias", False)
