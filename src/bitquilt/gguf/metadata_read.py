"""A GGUF file's metadata and tensor table, and the config that they amount to.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitquilt.errors import UserError
from bitquilt.gguf.container_read import GgufTensor, parse
from bitquilt.models import names

MODEL_TYPE = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""GGUF architecture → canonical model_type. Mistral is written as llama, which it computes as."""

ROPE_FREQS = "rope_freqs.weight"

_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class GgufHeader:
    """Everything of a GGUF file but its weights."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    """In file order."""

    @property
    def architecture(self) -> str:
        """``general.architecture``."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A value under the architecture's prefix, e.g. ``block_count`` for llama.block_count."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a model file.

    Raises:
        UserError: it is damaged, truncated, split, no model, or of an unknown architecture.
    """
    try:
        metadata, tensors = parse(path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as GGUF: {error}; it is truncated or damaged: download it again"
        ) from error
    header = GgufHeader(path, metadata, tensors)
    _refuse_what_is_no_model(header)
    return header


def config_of(header: GgufHeader) -> dict[str, Any]:
    """The Hugging Face config that a model's metadata amounts to.

    Raises:
        UserError: a field is missing, or says what no Hugging Face config of these can.
    """
    heads = _uniform(header, "attention.head_count")
    width = _uniform(header, "embedding_length")
    head_dim = header.get("attention.key_length", width // heads)
    model_type = MODEL_TYPE[header.architecture]
    config = {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": _uniform(header, "feed_forward_length"),
        "num_hidden_layers": _uniform(header, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _uniform(header, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": _uniform(header, "context_length"),
        "rms_norm_eps": _required(header, "attention.layer_norm_rms_epsilon"),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "rope_parameters": _rope(header, head_dim),
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if header.get("attention.value_length", head_dim) != head_dim:
        raise UserError(
            f"{header.path} has values of another width than its keys "
            f"({header.architecture}.attention.value_length), which no {model_type} model has"
        )
    family = _FAMILY.get(header.architecture)
    return config | family(header, config) if family else config


def generation_config(header: GgufHeader) -> dict[str, Any]:
    """Hugging Face's generation_config.json from the special tokens: every end token counts."""
    get = header.metadata.get
    ends = [get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    found = {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(end for end in ends if end is not None)),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }
    return {field: value for field, value in found.items() if value not in (None, [])}


def model_name(path: Path) -> str:
    """The file's name without its ending and without the type that it is quantized to."""
    return re.sub(r"[.-](I?Q\d\w*|UD-\w+|BF16|F16|F32)$", "", path.stem, flags=re.IGNORECASE)


def _refuse_what_is_no_model(header: GgufHeader) -> None:
    path, kind = header.path, header.metadata.get("general.type", "model")
    parts = header.metadata.get("split.count", 1)
    if parts > 1 or _SPLIT.search(path.name):
        raise UserError(
            f"{path} is one part of a split GGUF model; merge the parts first with "
            f"llama-gguf-split --merge {path} merged.gguf"
        )
    if kind == "imatrix" or any(name.endswith(".in_sum2") for name in header.tensors):
        raise UserError(f"{path} is an importance matrix, not a model; give the model's GGUF file")
    if kind == "adapter" or "adapter.type" in header.metadata:
        raise UserError(
            f"{path} is a LoRA adapter, not a model; merge it into its base model first"
        )
    if header.architecture not in MODEL_TYPE:
        raise UserError(
            f"{path} has architecture {header.architecture or 'unknown'}; bitquilt reads GGUF "
            f"files of {', '.join(MODEL_TYPE)}"
        )
    if header.get("expert_count", 0):
        raise UserError(
            f"{path} is a mixture of {header.get('expert_count')} experts; bitquilt reads dense "
            "models"
        )
    if "token_embd.weight" not in header.tensors:
        raise UserError(f"{path} has no token_embd.weight, so it is no whole language model")


def _required(header: GgufHeader, key: str, default: Any = None) -> Any:
    value = header.get(key, default)
    if value is None:
        raise UserError(
            f"{header.path} lacks the metadata {header.architecture}.{key}; it is damaged or was "
            "written by a very old converter: download a newer file"
        )
    return value


def _uniform(header: GgufHeader, key: str, default: Any = None) -> int:
    """An integer that may be stored once per layer, where all layers agree."""
    value = _required(header, key, default)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise UserError(
                f"{header.path} has {header.architecture}.{key} differing between layers, which "
                "bitquilt cannot express"
            )
        return int(value[0])
    return int(value)


def _rope(header: GgufHeader, head_dim: int) -> dict[str, Any]:
    """RoPE parameters of the full-attention layers as transformers 5 writes them."""
    rotary = header.get("rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UserError(
            f"{header.path} turns {rotary} of {head_dim} dimensions of a head "
            f"({header.architecture}.rope.dimension_count); bitquilt reads models that turn all"
        )
    parameters = {"rope_theta": float(header.get("rope.freq_base", 10000.0))}
    kind = header.get("rope.scaling.type", "none")
    if ROPE_FREQS in header.tensors:
        return {**parameters, **_llama3_scaling(header, parameters["rope_theta"], head_dim)}
    if kind == "none":
        return {**parameters, "rope_type": "default"}
    if kind == "linear":
        factor = float(_required(header, "rope.scaling.factor"))
        return {**parameters, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return {
            **parameters,
            "rope_type": "yarn",
            "factor": float(_required(header, "rope.scaling.factor")),
            "original_max_position_embeddings": int(
                _required(header, "rope.scaling.original_context_length")
            ),
        }
    raise UserError(
        f"{header.path} scales RoPE by {kind} ({header.architecture}.rope.scaling.type); bitquilt "
        "reads none, linear, yarn and Llama 3's rope_freqs"
    )


def _llama3_scaling(header: GgufHeader, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling, recovered from the factors that the converter computed from it.

    Every released Llama 3 model has low and high frequency factors 1 and 4 over 8192 positions;
    the factor is the largest of the stored ones. The formula must give back the others.
    """
    stored = header.tensors[ROPE_FREQS]
    data = np.memmap(header.path, np.float32, "r", stored.offset, stored.shape)
    factor, context = float(data.max()), 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelength - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    if not np.allclose(1.0 / ((1.0 - smooth) / factor + smooth), data, rtol=1e-3):
        raise UserError(
            f"{header.path} has RoPE factors ({ROPE_FREQS}) that Llama 3's scaling does not give; "
            "quantize from the Hugging Face checkpoint"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": context,
    }


def _llama_fields(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


def _gemma3_fields(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp fixes in code: local theta 10000, and 27B (62 layers) scales by width."""
    wide = config["num_hidden_layers"] == 62
    per_head = config["hidden_size"] // config["num_attention_heads"]
    return {
        "sliding_window": _uniform(header, "attention.sliding_window"),
        "query_pre_attn_scalar": per_head if wide else config["head_dim"],
        "final_logit_softcapping": header.get("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float(header.get("rope.freq_base_swa", 10000.0)),
            },
        },
    }


_FAMILY = {"llama": _llama_fields, "gemma3": _gemma3_fields}


def hf_tensors(header: GgufHeader) -> dict[str, GgufTensor]:
    """The tensor table under Hugging Face names.

    Raises:
        UserError: a tensor has no place in the architecture.
    """
    model_type = MODEL_TYPE[header.architecture]
    return {
        names.hf_name(name, model_type): tensor
        for name, tensor in header.tensors.items()
        if name != ROPE_FREQS
    }
