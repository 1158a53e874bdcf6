"""Llama 4 without experts, which is MobileLLM-R1: rewritten, exactly, to Qwen 3 or to Llama.

transformers' ``Llama4TextAttention`` turns interleaved rows and then applies a weightless RMS norm
per head, ``Qwen3Attention`` applies a weighted one and then turns half-split rows. A rotation keeps
the RMS, so a norm of ones before it equals the weightless norm after it; reordering the rows of q
and k alike leaves every attention score as it was. Without QK norm the same argument ends at llama.
"""

from __future__ import annotations

from collections.abc import Callable

from bitquilt.errors import UserError
from bitquilt.models.architectures.conditions import SWIGLU, Condition, no_bias, rope_type
from bitquilt.models.architectures.rewrite import Rewrite, TensorOrigin
from bitquilt.models.architectures.rotation import interleaving
from bitquilt.models.checkpoint import Finding
from bitquilt.models.config import ModelConfig, complete

_KEPT = (
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
"""Fields that mean the same in the other family."""


def _rope_flags(config: ModelConfig) -> list[int]:
    """One flag per layer of a llama4_text config: 1 where RoPE is on.

    ``no_rope_layers`` names the flags for what they are not. An empty or missing list turns RoPE
    off on every ``no_rope_layer_interval``-th layer; a list may be longer than the model.
    """
    layers = config["num_hidden_layers"]
    interval = config.get("no_rope_layer_interval") or 4
    stated = config.get("no_rope_layers")
    if stated is not None and not isinstance(stated, list):
        raise UserError(
            f"no_rope_layers is {stated!r:.60} in config.json, and should be a list; compare it "
            "with the one on the model's page"
        )
    flags = stated or [int((i + 1) % interval != 0) for i in range(layers)]
    return list(flags[:layers])


def _completed(config: ModelConfig) -> ModelConfig:
    """A llama4_text config with defaults, after mending what transformers' class trips over.

    Zero experts with ``moe_layers`` missing, and flags for more layers than there are.
    """
    layers = config.get("num_hidden_layers", 48)
    mended = {
        **config,
        "no_rope_layers": _rope_flags({**config, "num_hidden_layers": layers}),
        "layer_types": ["chunked_attention"] * layers,
    }
    if config.get("moe_layers") is None and config.get("num_local_experts", 16) == 0:
        mended["moe_layers"] = []
    return complete(mended)


def _rewritten(found: ModelConfig) -> ModelConfig:
    target, name = ("qwen3", "Qwen3") if found["use_qk_norm"] else ("llama", "Llama")
    return {
        **{field: found[field] for field in _KEPT},
        "model_type": target,
        "architectures": [f"{name}ForCausalLM"],
        "intermediate_size": found["intermediate_size_mlp"],
        "attention_bias": False,
    }


def _origin(name: str, config: ModelConfig) -> TensorOrigin:
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return TensorOrigin(None)
    order = interleaving(name, config)
    if order is None:
        return TensorOrigin(name.replace(".mlp.", ".feed_forward."))
    return TensorOrigin(name, order.argsort())


def _findings(original: ModelConfig) -> list[Finding]:
    """What is odd: these fields say less, or other things, than their names."""
    rules = (_no_experts, _mlp_widths, _odd_flags, _attn_scale, _missing_moe_layers)
    return [finding for rule in rules for finding in rule(original)]


def _no_experts(original: ModelConfig) -> list[Finding]:
    target, norm = ("qwen3", "q_norm and k_norm of ones take the place of its weightless QK norm")
    if not original.get("use_qk_norm", True):
        target, norm = "llama", "it has no QK norm"
    return [
        Finding(
            "num_local_experts",
            "Without experts, llama.cpp refuses llama4 (“model cannot have zero experts”); so "
            f"bitquilt rewrites it as {target}, which computes the same: q and k rows are "
            f"reordered, {norm}.",
        )
    ]


def _mlp_widths(original: ModelConfig) -> list[Finding]:
    if "intermediate_size_mlp" not in original:
        return []
    return [
        Finding(
            "intermediate_size_mlp",
            f"The MLP is one SwiGLU of width {original['intermediate_size_mlp']}, like its "
            f"tensors; intermediate_size = {original.get('intermediate_size')} would be the width "
            "of experts, and there are none.",
        )
    ]


def _odd_flags(original: ModelConfig) -> list[Finding]:
    flags, layers = original.get("no_rope_layers"), original.get("num_hidden_layers", 0)
    if not flags:
        return []
    message = "One flag per layer; in spite of the name, 1 means that RoPE is on, and all are 1."
    if len(flags) > layers:
        message += (
            f" The list has {len(flags)} flags for {layers} layers: the rest have no effect, but "
            "transformers 5 refuses to load such a config."
        )
    return [Finding("no_rope_layers", message)]


def _attn_scale(original: ModelConfig) -> list[Finding]:
    if "attn_scale" not in original:
        return []
    return [
        Finding(
            "attn_scale",
            f"{original['attn_scale']} has no effect: it acts only in layers without RoPE and with "
            "attn_temperature_tuning; attention is scaled by head_dim^-0.5.",
        )
    ]


def _missing_moe_layers(original: ModelConfig) -> list[Finding]:
    if original.get("moe_layers") is not None:
        return []
    return [
        Finding(
            "moe_layers",
            "It is missing, so transformers would expect experts in every layer; with zero "
            "experts every layer is dense, like the tensors.",
        )
    ]


def _if_dense(holds: Callable[[ModelConfig], bool]) -> Callable[[ModelConfig], bool]:
    """What matters to the rewrite alone: models with experts are not rewritten."""
    return lambda config: bool(config["moe_layers"]) or holds(config)


_CONDITIONS = (
    Condition(
        "moe_layers",
        lambda c: not c["moe_layers"],
        "its experts have no dense equivalent",
        converted=True,
    ),
    Condition(
        "no_rope_layers",
        _if_dense(lambda c: len(flags := _rope_flags(c)) == c["num_hidden_layers"] and all(flags)),
        "every layer needs the flag 1 (RoPE on); an empty list turns RoPE off on every "
        "no_rope_layer_interval-th layer",
    ),
    no_bias("qwen3"),
    Condition(
        "rope_parameters",
        _if_dense(lambda c: rope_type(c) == "default"),
        "scaled RoPE has not been shown to compute the same in both",
    ),
    Condition(
        "attention_chunk_size",
        _if_dense(
            lambda c: (
                c["attention_chunk_size"] is None
                or c["attention_chunk_size"] >= c["max_position_embeddings"]
            )
        ),
        "attention in chunks shorter than the context is not plain attention",
    ),
    SWIGLU,
)

LLAMA4 = Rewrite(
    model_type="llama4_text",
    about="MobileLLM-R1: dense, RoPE on every layer",
    complete=_completed,
    conditions=_CONDITIONS,
    rewritten=_rewritten,
    origin=_origin,
    findings=_findings,
    fields={"M": "intermediate_size_mlp"},
)
