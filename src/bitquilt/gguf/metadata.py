"""What a GGUF file says of a model's shape, read and written in llama.cpp's words.

Key names: the GGUF specification and llama.cpp's ``llama_model_base::load_hparams``. What only one
family has is added by :mod:`bitquilt.models.architectures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitquilt.errors import UserError
from bitquilt.gguf.container import MetadataValue
from bitquilt.gguf.header import GgufHeader
from bitquilt.gguf.rope import RopeParameters, read_rope, rope_keys
from bitquilt.gguf.tokenizer import end_tokens


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """llama.cpp's ``llama_hparams`` of a dense decoder, as far as all families have them."""

    context_length: int
    embedding_length: int
    block_count: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    head_dim: int
    """``attention.key_length`` and ``attention.value_length``, which are one."""
    rms_epsilon: float
    rope: RopeParameters
    vocab_size: int


def hyperparameter_keys(
    architecture: str, hyperparameters: Hyperparameters, own: Mapping[str, MetadataValue]
) -> dict[str, MetadataValue]:
    """Every key that llama.cpp needs to build the graph.

    Args:
        architecture: the value of ``general.architecture``, which begins every key.
        hyperparameters: what all families have.
        own: what this family has besides, without the architecture's name.

    Raises:
        UserError: llama.cpp has no such RoPE scaling.
    """
    h = hyperparameters
    keys: dict[str, MetadataValue] = {
        "context_length": h.context_length,
        "embedding_length": h.embedding_length,
        "block_count": h.block_count,
        "feed_forward_length": h.feed_forward_length,
        "attention.head_count": h.head_count,
        "attention.head_count_kv": h.head_count_kv,
        "attention.key_length": h.head_dim,
        "attention.value_length": h.head_dim,
        "attention.layer_norm_rms_epsilon": h.rms_epsilon,
        "rope.dimension_count": h.head_dim,
        "rope.freq_base": float(h.rope["rope_theta"]),
        "vocab_size": h.vocab_size,
        **own,
        **rope_keys(h.rope),
    }
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def read_hyperparameters(header: GgufHeader) -> Hyperparameters:
    """The inverse of :func:`hyperparameter_keys`, of files that others wrote too.

    Raises:
        UserError: a key is missing, or says what no dense decoder of Hugging Face has.
    """
    heads = header.uniform("attention.head_count")
    width = header.uniform("embedding_length")
    head_dim = header.uniform("attention.key_length", width // heads)
    if header.get("attention.value_length", head_dim) != head_dim:
        raise UserError(
            f"{header.path} has attention values and keys of different widths "
            f"({header.architecture}.attention.value_length), which bitquilt does not support; "
            "quantize another model"
        )
    return Hyperparameters(
        context_length=header.uniform("context_length"),
        embedding_length=width,
        block_count=header.uniform("block_count"),
        feed_forward_length=header.uniform("feed_forward_length"),
        head_count=heads,
        head_count_kv=header.uniform("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_epsilon=header.required("attention.layer_norm_rms_epsilon"),
        rope=read_rope(header, head_dim),
        vocab_size=header.tensors["token_embd.weight"].shape[0],
    )


def generation_config(header: GgufHeader) -> dict[str, Any]:
    """Hugging Face's generation_config.json from the special tokens: every end token counts."""
    get = header.metadata.get
    found = {
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_tokens(header.metadata),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
    }
    return {field: value for field, value in found.items() if value not in (None, [])}
