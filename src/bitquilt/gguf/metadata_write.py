"""A canonical config as GGUF architecture keys.

Key names: the GGUF specification and llama.cpp's ``llm_load_hparams``. Where llama.cpp computes
something that the config says otherwise, the model is refused by field name.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from bitquilt.errors import UserError
from bitquilt.gguf.container_write import Value
from bitquilt.models.config import rope
from bitquilt.models.layout import head_dim
from bitquilt.models.names import GGUF_ARCHITECTURE

SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Field of generation_config.json → metadata key."""
GEMMA3_WINDOW_PERIOD = 6
GEMMA3_LOCAL_THETA = 10_000.0
GEMMA3_27B_LAYERS = 62


def architecture(config: dict[str, Any]) -> str:
    """The GGUF architecture of a canonical config."""
    return GGUF_ARCHITECTURE[config["model_type"]]


def architecture_keys(config: dict[str, Any]) -> dict[str, Value]:
    """Every ``{architecture}.*`` key that llama.cpp needs to build the graph.

    Raises:
        UserError: the config asks for something that llama.cpp computes differently.
    """
    if config["model_type"] == "gemma3_text":
        special = _gemma3_keys(config)
    else:
        special = _rope_scaling_keys(rope(config))
    keys: dict[str, Value] = {
        "context_length": _context_length(config),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": int(config["num_key_value_heads"]),
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        "rope.dimension_count": head_dim(config),
        "rope.freq_base": float(rope(config)["rope_theta"]),
        "vocab_size": int(config["vocab_size"]),
        **special,
    }
    return {f"{architecture(config)}.{key}": value for key, value in keys.items()}


def sampling_keys(generation: dict[str, Any]) -> dict[str, Value]:
    """The sampling that the model's authors recommend, which llama.cpp takes as its defaults."""
    if not generation.get("do_sample"):
        return {}
    said = {field: value for field, value in generation.items() if value is not None}
    sampled = {"temperature": 1.0, **said}  # as transformers has it
    stated = {key: sampled[field] for field, key in SAMPLING_KEYS.items() if field in sampled}
    return {key: int(v) if key.endswith("top_k") else float(v) for key, v in stated.items()}


def _context_length(config: dict[str, Any]) -> int:
    """The longest context in which llama.cpp's full attention is what the model was trained with.

    llama.cpp has no sliding window for llama and qwen; within one window there is no difference.
    """
    longest = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if config["model_type"] == "gemma3_text" or not window:
        return longest
    if config["model_type"] != "mistral" and not config.get("use_sliding_window"):
        return longest
    return min(longest, int(window))


def _rope_scaling_keys(parameters: dict[str, Any]) -> dict[str, Value]:
    kind = parameters["rope_type"]
    if kind in ("default", "llama3"):  # llama3's factors are a tensor, see rope_factors
        return {}
    if kind == "linear":
        return {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": float(parameters["factor"]),
        }
    if kind == "yarn":
        return _yarn_keys(parameters)
    raise UserError(
        f"rope_scaling of type {kind} has no exact GGUF form; "
        "write MLX instead, or remove it from config.json to run without it"
    )


def _yarn_keys(parameters: dict[str, Any]) -> dict[str, Value]:
    """YaRN as transformers and llama.cpp agree on it: default betas and attention factor."""
    defaults = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    odd = [k for k, v in defaults.items() if parameters.get(k) not in (None, v)]
    odd += [k for k in ("attention_factor", "mscale", "mscale_all_dim") if parameters.get(k)]
    if odd:
        raise UserError(
            f"rope_scaling.{odd[0]} of this YaRN model has no exact GGUF form; write MLX instead"
        )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(parameters["factor"]),
        "rope.scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
    }


def rope_factors(config: dict[str, Any]) -> npt.NDArray[np.float32] | None:
    """Llama 3's frequency divisors, float32 [head_dim / 2], or None without such scaling.

    Long wavelengths are divided by ``factor``, short ones left alone, those between blended; the
    file carries them as ``rope_freqs.weight``. Source: Llama 3.1's reference ``apply_scaling``.
    """
    parameters = rope(config)
    if parameters["rope_type"] != "llama3":
        return None
    if architecture(config) != "llama":
        raise UserError(
            f"llama.cpp reads Llama 3 RoPE scaling for llama models only, not for "
            f"{config['model_type']}; write MLX instead"
        )
    factor = float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    context = float(parameters["original_max_position_embeddings"])
    width = head_dim(config)
    frequency = parameters["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = context * frequency / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: npt.NDArray[np.float32] = (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)
    return factors


def _gemma3_keys(config: dict[str, Any]) -> dict[str, Value]:
    """Gemma 3's window keys, after checking what llama.cpp hard-wires for this architecture."""
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    scale = config["hidden_size"] // heads if layers == GEMMA3_27B_LAYERS else head_dim(config)
    if config.get("query_pre_attn_scalar", scale) != scale:
        raise UserError(
            f"query_pre_attn_scalar is {config['query_pre_attn_scalar']}, where llama.cpp always "
            f"scales attention by {scale}^-0.5; write MLX instead"
        )
    if config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        raise UserError("logit soft-capping has no GGUF form for Gemma 3; write MLX instead")
    expected = [
        "full_attention" if (i + 1) % GEMMA3_WINDOW_PERIOD == 0 else "sliding_attention"
        for i in range(layers)
    ]
    if config.get("layer_types", expected) != expected:
        raise UserError(
            "layer_types is not five windowed layers to one full, which is all that llama.cpp "
            "runs for Gemma 3; write MLX instead"
        )
    if config["rope_local_base_freq"] != GEMMA3_LOCAL_THETA:
        raise UserError(
            f"rope_local_base_freq is {config['rope_local_base_freq']}, where llama.cpp always "
            f"uses {GEMMA3_LOCAL_THETA:.0f}; write MLX instead"
        )
    return {
        "attention.sliding_window": int(config["sliding_window"]),
        **_rope_scaling_keys(rope(config)),
    }
