"""Exact rewrites to an architecture that every engine runs.

``llama4_text`` without experts and with RoPE on every layer is qwen3 in other words: transformers'
``Llama4TextAttention`` turns interleaved rows and then applies a weightless RMS norm per head,
``Qwen3Attention`` applies a weighted one and then turns half-split rows. A rotation keeps the RMS,
so a norm of ones before it equals the weightless norm after it; reordering the rows of q and k
alike leaves every attention score as it was. Without QK norm the same argument ends at llama.

Everything here is a pure function of the config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bitquilt.errors import UserError
from bitquilt.models import layout, names
from bitquilt.models.config import complete, rope

Config = dict[str, Any]

WRAPPERS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""Multimodal model_type → model_type of its text half, which is all that is kept."""

QUANTIZED = ("quantization_config", "quantization")
"""Entries of a config.json that say its weights are quantized."""

WORKS = (
    "llama4_text (MobileLLM-R1: dense, RoPE on every layer), "
    "llama, mistral, qwen2, qwen3, gemma3_text, and the text half of gemma3 and mistral3"
)

_LLAMA4 = "llama4_text"


@dataclass(frozen=True)
class Origin:
    """Where one canonical tensor comes from."""

    source: str | None
    """Tensor name in the source; None for a norm of ones that the rewrite adds."""
    rows: torch.Tensor | None = None
    """int64 row order to apply, [R]."""


@dataclass(frozen=True)
class Canonical:
    """A checkpoint's canonical form, before any weight is read."""

    config: Config
    shapes: dict[str, tuple[int, ...]]
    origins: dict[str, Origin]


def canonical(config: Config) -> Canonical:
    """The canonical form of a config as published.

    Raises:
        UserError: the architecture, or one field of it, has no exact rewrite; it names the field.
    """
    text = text_config(config)
    if text.get("model_type") == _LLAMA4:
        return _from_llama4(llama4_defaults(text))
    found = complete(text)
    _refuse(found, _CONDITIONS)
    _refuse(found, _FAMILY_CONDITIONS.get(found["model_type"], ()))
    shapes = layout.shapes(found)
    return Canonical(found, shapes, {name: Origin(name) for name in shapes})


def text_config(config: Config) -> Config:
    """The language model's part of a config, with the model_type of an architecture that works.

    Raises:
        UserError: the architecture is unknown, or the weights are quantized already.
    """
    model_type = config.get("model_type")
    text = config
    if model_type in WRAPPERS:
        text = {"model_type": WRAPPERS[model_type], **config.get("text_config", {})}
        text.setdefault("tie_word_embeddings", config.get("tie_word_embeddings", False))
        model_type = text["model_type"]
    if model_type != _LLAMA4 and model_type not in layout.MODEL_TYPES:
        raise UserError(
            f"model_type {model_type} is not an architecture that bitquilt can rewrite exactly; "
            f"it works on {WORKS}"
        )
    for field in QUANTIZED:
        if config.get(field) or text.get(field):
            raise UserError(
                f"config.json has {field}: these weights are quantized already; "
                "give the original checkpoint, or a GGUF file, which is dequantized on reading"
            )
    return text


def source_name(stored: str) -> str:
    """A stored tensor name without the prefix that a multimodal wrapper puts before it.

    ``language_model.model.layers.0…`` and ``model.language_model.layers.0…`` both mean
    ``model.layers.0…``.
    """
    if stored.startswith("model.language_model."):
        return "model." + stored.removeprefix("model.language_model.")
    return stored.removeprefix("language_model.")


def apply(origin: Origin, tensor: torch.Tensor) -> torch.Tensor:
    """A source tensor in canonical row order."""
    return tensor if origin.rows is None else tensor[origin.rows]


def rope_flags(config: Config) -> list[int]:
    """One flag per layer of a llama4_text config: 1 where RoPE is on.

    ``no_rope_layers`` names the flags for what they are not. An empty or missing list turns RoPE
    off on every ``no_rope_layer_interval``-th layer; a list may be longer than the model.
    """
    layers = config["num_hidden_layers"]
    interval = config.get("no_rope_layer_interval") or 4
    flags = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    return list(flags[:layers])


def llama4_defaults(config: Config) -> Config:
    """A llama4_text config with defaults, after mending what transformers' class trips over.

    Zero experts with ``moe_layers`` missing, and flags for more layers than there are.
    """
    layers = config.get("num_hidden_layers", 48)
    if not isinstance(layers, int):
        raise UserError(f"num_hidden_layers = {layers!r} in config.json is not a number")
    mended = {
        **config,
        "no_rope_layers": rope_flags({**config, "num_hidden_layers": layers}),
        "layer_types": ["chunked_attention"] * layers,
    }
    if config.get("moe_layers") is None and config.get("num_local_experts", 16) == 0:
        mended["moe_layers"] = []
    return complete(mended)


def _from_llama4(found: Config) -> Canonical:
    """Rewrite a dense llama4_text model to qwen3, or to llama where it has no QK norm."""
    _refuse(found, (*_CONDITIONS, *_LLAMA4_CONDITIONS))
    target = "qwen3" if found["use_qk_norm"] else "llama"
    config = complete(
        {
            **{field: found[field] for field in _LLAMA4_KEPT},
            "model_type": target,
            "architectures": [{"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[target]],
            "intermediate_size": found["intermediate_size_mlp"],
            "attention_bias": False,
        }
    )
    shapes = layout.shapes(config)
    return Canonical(config, shapes, {name: _llama4_origin(name, config) for name in shapes})


def _llama4_origin(name: str, config: Config) -> Origin:
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return Origin(None)
    turned = names.rotated_heads(name)
    if turned is None:
        return Origin(name.replace(".mlp.", ".feed_forward."))
    heads = config["num_attention_heads" if turned == "q" else "num_key_value_heads"]
    return Origin(name, names.permutation(heads, layout.head_dim(config)).argsort())


_LLAMA4_KEPT = (
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)


@dataclass(frozen=True)
class _Condition:
    """What a field must be for the canonical form to be exact."""

    field: str
    holds: Callable[[Config], bool]
    because: str


def _refuse(config: Config, conditions: tuple[_Condition, ...]) -> None:
    """Raise UserError for the first condition that fails."""
    for condition in conditions:
        if not condition.holds(config):
            value = config.get(condition.field)
            raise UserError(
                f"{condition.field} = {value} in a {config['model_type']} model has no exact "
                f"canonical form: {condition.because}; bitquilt works on {WORKS}"
            )


def _rope_type(config: Config) -> str:
    return str(rope(config).get("rope_type", "default"))


def _activation(config: Config) -> str | None:
    return config.get("hidden_act") or config.get("hidden_activation")


_CONDITIONS = (
    _Condition(
        "rope_parameters",
        lambda c: rope(c).get("partial_rotary_factor", 1.0) == 1.0,
        "engines turn whole heads, not a part of them",
    ),
    _Condition(
        "num_key_value_heads",
        lambda c: c["num_attention_heads"] % c["num_key_value_heads"] == 0,
        "query heads must share KV heads evenly",
    ),
)

_LLAMA4_CONDITIONS = (
    _Condition("moe_layers", lambda c: not c["moe_layers"], "its experts have no dense equivalent"),
    _Condition(
        "no_rope_layers",
        lambda c: len(flags := rope_flags(c)) == c["num_hidden_layers"] and all(flags),
        "every layer needs the flag 1, RoPE on; an empty list means off on every "
        "no_rope_layer_interval-th layer",
    ),
    _Condition("attention_bias", lambda c: not c["attention_bias"], "qwen3 has no biases"),
    _Condition(
        "rope_parameters",
        lambda c: _rope_type(c) == "default",
        "scaled RoPE has not been shown to be equal",
    ),
    _Condition(
        "attention_chunk_size",
        lambda c: (
            c["attention_chunk_size"] is None
            or c["attention_chunk_size"] >= c["max_position_embeddings"]
        ),
        "attention in chunks shorter than the context is not plain attention",
    ),
    _Condition("hidden_act", lambda c: c["hidden_act"] == "silu", "the MLP must be SwiGLU"),
)

_SWIGLU = _Condition("hidden_act", lambda c: _activation(c) == "silu", "the MLP must be SwiGLU")
_SCALING = _Condition(
    "rope_parameters",
    lambda c: _rope_type(c) in ("default", "linear", "llama3", "yarn"),
    "engines know the RoPE types default, linear, llama3 and yarn",
)

_FAMILY_CONDITIONS: dict[str, tuple[_Condition, ...]] = {
    "llama": (_SWIGLU, _SCALING),
    "mistral": (_SWIGLU, _SCALING),
    "qwen2": (_SWIGLU, _SCALING),
    "qwen3": (
        _SWIGLU,
        _SCALING,
        _Condition(
            "attention_bias", lambda c: not c["attention_bias"], "engines' qwen3 has no biases"
        ),
    ),
    "gemma3_text": (
        _Condition(
            "hidden_activation",
            lambda c: _activation(c) == "gelu_pytorch_tanh",
            "engines' gemma3 has no other",
        ),
        _Condition(
            "attention_bias", lambda c: not c["attention_bias"], "engines' gemma3 has no biases"
        ),
        _Condition(
            "layer_types",
            lambda c: all(
                (kind == "full_attention") == (layer % 6 == 0)
                for layer, kind in enumerate(c["layer_types"], start=1)
            ),
            "engines attend fully on every sixth layer",
        ),
        _Condition(
            "use_bidirectional_attention",
            lambda c: not c.get("use_bidirectional_attention"),
            "engines attend causally",
        ),
        _Condition(
            "attn_logit_softcapping",
            lambda c: not c.get("attn_logit_softcapping"),
            "engines' gemma3 caps no logits",
        ),
        _Condition(
            "final_logit_softcapping",
            lambda c: not c.get("final_logit_softcapping"),
            "engines' gemma3 caps no logits",
        ),
        _Condition(
            "query_pre_attn_scalar",
            lambda c: (
                c["query_pre_attn_scalar"] == layout.head_dim(c)
                # llama.cpp takes 62 layers for Gemma 3 27B, which scales by width per head
                or c["num_hidden_layers"] == 62
            ),
            "llama.cpp scales attention by head_dim",
        ),
        _Condition(
            "rope_parameters",
            lambda c: _rope_type(c) in ("default", "linear"),
            "engines' gemma3 knows the RoPE types default and linear",
        ),
    ),
}
