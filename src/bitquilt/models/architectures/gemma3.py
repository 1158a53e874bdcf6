"""Gemma 3, the text half: norms of 1 + w, scaled embeddings, windows in five layers of six."""

from __future__ import annotations

from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.header import GgufHeader
from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import Condition, activation, no_bias, rope_type
from bitquilt.models.architectures.tensors import ATTENTION, MLP, NORMS, QK_NORM, TensorSpec
from bitquilt.models.config import ModelConfig, head_dim

# What llama.cpp fixes in code (llama-model.cpp, LLM_ARCH_GEMMA3).
_LAYERS_OF_27B = 62
_WINDOW_PERIOD = 6
_LOCAL_THETA = 10_000.0


def _attention_scalar(config: ModelConfig) -> int:
    """llama.cpp scales attention by this to the power of -1/2: the 27B by its width per head."""
    if config["num_hidden_layers"] == _LAYERS_OF_27B:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return head_dim(config)


def _full_on_every_sixth(config: ModelConfig) -> bool:
    return all(
        (kind == "full_attention") == (layer % _WINDOW_PERIOD == 0)
        for layer, kind in enumerate(config["layer_types"], start=1)
    )


_LAYER_TYPES = Condition(
    "layer_types", _full_on_every_sixth, "engines use full attention on every sixth layer"
)
_UNCAPPED_ATTENTION = Condition(
    "attn_logit_softcapping",
    lambda c: not c.get("attn_logit_softcapping"),
    "engines do not cap logits in gemma3",
)
_UNCAPPED_LOGITS = Condition(
    "final_logit_softcapping",
    lambda c: not c.get("final_logit_softcapping"),
    "not every engine caps logits in gemma3",
    converted=True,  # llama.cpp does
)


def _keys(config: ModelConfig) -> dict[str, MetadataValue]:
    keys: dict[str, MetadataValue] = {"attention.sliding_window": int(config["sliding_window"])}
    if config["rope_local_base_freq"] != _LOCAL_THETA:
        keys["rope.freq_base_swa"] = float(config["rope_local_base_freq"])
    return keys


def _fields(header: GgufHeader, config: ModelConfig) -> ModelConfig:
    return {
        "sliding_window": header.uniform("attention.sliding_window"),
        "query_pre_attn_scalar": _attention_scalar(config),
        "final_logit_softcapping": header.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float(header.get("rope.freq_base_swa", _LOCAL_THETA)),
            },
        },
    }


GEMMA3 = Architecture(
    model_type="gemma3_text",
    gguf_architecture="gemma3",
    block={
        **ATTENTION,
        **QK_NORM,
        **MLP,
        **NORMS,
        # here the norm after attention is one, and not the norm before the MLP
        "post_attention_layernorm.weight": TensorSpec("D", "post_attention_norm"),
        "pre_feedforward_layernorm.weight": TensorSpec("D", "ffn_norm"),
        "post_feedforward_layernorm.weight": TensorSpec("D", "post_ffw_norm"),
    },
    conditions=(
        Condition(
            "hidden_activation",
            lambda c: activation(c) == "gelu_pytorch_tanh",
            "engines run gemma3 with gelu_pytorch_tanh only",
        ),
        no_bias("gemma3"),
        _LAYER_TYPES,
        Condition(
            "use_bidirectional_attention",
            lambda c: not c.get("use_bidirectional_attention"),
            "engines attend to earlier tokens only",
        ),
        _UNCAPPED_ATTENTION,
        _UNCAPPED_LOGITS,
        Condition(
            "query_pre_attn_scalar",
            lambda c: (
                c["query_pre_attn_scalar"] == head_dim(c)
                or c["num_hidden_layers"] == _LAYERS_OF_27B
            ),
            "llama.cpp scales attention by head_dim",
        ),
        Condition(
            "rope_parameters",
            lambda c: rope_type(c) in ("default", "linear", "yarn"),
            "engines know the RoPE types default and linear for gemma3",
        ),
        Condition(
            "rope_parameters",
            lambda c: rope_type(c) != "yarn",
            "not every engine knows yarn for gemma3",
            converted=True,  # llama.cpp does
        ),
        Condition(
            "rope_parameters",
            lambda c: (
                c["rope_parameters"].get("sliding_attention", {}).get("rope_type", "default")
                == "default"
            ),
            "engines do not scale the RoPE of gemma3's windows",
        ),
    ),
    wrappers=("gemma3",),
    embedding_scale=lambda config: float(config["hidden_size"]) ** 0.5,
    plain_residual=False,
    norm_offset=1.0,
    runs_windows=True,
    gguf_conditions=(
        Condition(
            "query_pre_attn_scalar",
            lambda c: c["query_pre_attn_scalar"] == _attention_scalar(c),
            "llama.cpp always scales attention by head_dim, and the 27B by its width per head",
        ),
        _UNCAPPED_ATTENTION,
        _UNCAPPED_LOGITS,
        _LAYER_TYPES,
    ),
    gguf_keys=_keys,
    gguf_fields=_fields,
)
