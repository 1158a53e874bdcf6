"""What kind of value each key of a GGUF header has, of those that are read here.

A header comes from anywhere. What is read of it is looked at once, before anybody relies on it.
Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from bitquilt.errors import in_brief

_MOST = 2**32
"""Counts are uint32 in the specification."""


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _each(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Of the whole model, or of each of its layers."""
    several = _list_of(one)
    return lambda value: one(value) or (several(value) and value != [])


_COUNT, _REAL, _TEXT, _FLAG = "a whole number", "a number", "a text", "true or false"
_LAYERS = f"{_COUNT}, or one for each layer"

_IS: dict[str, Callable[[Any], bool]] = {
    _COUNT: _whole,
    _REAL: _number,
    _TEXT: _text,
    _FLAG: _flag,
    _LAYERS: _each(_whole),
    "a list of texts": _list_of(_text),
    "a list of whole numbers": _list_of(_whole),
    "a list of numbers": _list_of(_number),
}
"""Kind, in words → whether a value is one."""

_OF_FILES = {
    "general.architecture": _TEXT,
    "general.type": _TEXT,
    "general.name": _TEXT,
    "general.alignment": _COUNT,
    "general.file_type": _COUNT,
    "general.base_model.count": _COUNT,
    "general.sampling.temp": _REAL,
    "general.sampling.top_k": _REAL,
    "general.sampling.top_p": _REAL,
    "general.sampling.min_p": _REAL,
    "general.sampling.penalty_repeat": _REAL,
    "split.no": _COUNT,
    "split.count": _COUNT,
    "tokenizer.ggml.model": _TEXT,
    "tokenizer.ggml.pre": _TEXT,
    "tokenizer.ggml.tokens": "a list of texts",
    "tokenizer.ggml.merges": "a list of texts",
    "tokenizer.ggml.token_type": "a list of whole numbers",
    "tokenizer.ggml.scores": "a list of numbers",
    "tokenizer.ggml.add_bos_token": _FLAG,
    "tokenizer.ggml.add_eos_token": _FLAG,
    "tokenizer.ggml.add_space_prefix": _FLAG,
    "tokenizer.chat_templates": "a list of texts",
    "imatrix.datasets": "a list of texts",
    "imatrix.chunk_count": _COUNT,
    "imatrix.chunk_size": _COUNT,
}
_OF_ARCHITECTURES = {
    "context_length": _COUNT,
    "embedding_length": _LAYERS,
    "block_count": _COUNT,
    "feed_forward_length": _LAYERS,
    "expert_count": _COUNT,
    "expert_used_count": _LAYERS,
    "embedding_scale": _REAL,
    "final_logit_softcapping": _REAL,
    "attention.head_count": _LAYERS,
    "attention.head_count_kv": _LAYERS,
    "attention.key_length": _LAYERS,
    "attention.value_length": _LAYERS,
    "attention.layer_norm_rms_epsilon": _REAL,
    "attention.sliding_window": _LAYERS,
    "rope.dimension_count": _LAYERS,
    "rope.freq_base": _REAL,
    "rope.freq_base_swa": _REAL,
    "rope.scaling.type": _TEXT,
    "rope.scaling.factor": _REAL,
    "rope.scaling.original_context_length": _COUNT,
}
"""Keys without the architecture's name, which comes before."""
_ID, _NAMED = "_token_id", ("bos", "eos", "unknown", "padding")


def odd_value(metadata: Mapping[str, Any]) -> str | None:
    """Say of the first value of another kind than its key's what is wrong; None where all serve."""
    architecture = metadata.get("general.architecture")
    known = dict(_OF_FILES)
    if isinstance(architecture, str):
        known |= {f"{architecture}.{key}": kind for key, kind in _OF_ARCHITECTURES.items()}
    for key, value in metadata.items():
        kind = known.get(key)
        if kind is None and key.startswith("tokenizer.ggml.") and key.endswith(_ID):
            kind = _COUNT
        if kind is not None and not _IS[kind](value):
            return f"{key} is {in_brief(value)} there, and should be {kind}"
    return _odd_token(metadata)


def _odd_token(metadata: Mapping[str, Any]) -> str | None:
    """Say of the first token that is named and not there which it is."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    for role in _NAMED:
        index = metadata.get(f"tokenizer.ggml.{role}{_ID}", 0)
        if index >= len(tokens):
            return f"tokenizer.ggml.{role}{_ID} is {index:,}, and there are {len(tokens):,} tokens"
    for name in ("token_type", "scores"):
        stated = metadata.get(f"tokenizer.ggml.{name}")
        if stated is not None and len(stated) != len(tokens):
            return (
                f"tokenizer.ggml.{name} has {len(stated):,} entries, and there are "
                f"{len(tokens):,} tokens"
            )
    return None
