"""What fields of a config.json can be, looked at before anything is made as large as they say."""

from __future__ import annotations

import math
from typing import Any

from bitquilt.errors import UserError, in_brief

MOST = {
    "num_hidden_layers": 2**12,
    "hidden_size": 2**18,
    "intermediate_size": 2**22,
    "intermediate_size_mlp": 2**22,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "vocab_size": 2**26,
    "max_position_embeddings": 2**40,
    "sliding_window": 2**40,
}
"""Whole numbers of a config, and what is many times that of the largest model that there is."""
_NUMBERS = ("rms_norm_eps", "rope_theta", "query_pre_attn_scalar", "rope_local_base_freq")
"""Numbers above 0."""
_LARGEST = 3e38
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TEXTS = ("model_type", "dtype", "torch_dtype", "hidden_act", "hidden_activation")


def refuse_odd_fields(config: dict[str, Any], where: str = "config.json") -> None:
    """Look at the fields that are calculated with; those that are missing have defaults.

    Args:
        config: as published, or the text half of one.
        where: its file, for errors.

    Raises:
        UserError: a field is of another kind than it must be, or larger than in any model.
    """
    for field, most in MOST.items():
        value = config.get(field)
        if field == "sliding_window" and value == 0 and config.get("use_sliding_window") is False:
            continue  # as transformers writes it for models that have none
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise _odd(field, value, f"a whole number from 1 to {most:,}", where)
    heads, width = config.get("num_attention_heads") or 1, config.get("head_dim") or 1
    if heads * width > MOST["hidden_size"]:
        limit = f"at most {MOST['hidden_size']:,} with {heads:,} heads"
        raise _odd("head_dim", width, limit, where)
    for field in _NUMBERS:
        value = config.get(field)
        if value is not None and not is_number(value, above=0):
            raise _odd(field, value, "a number above 0", where)
    for field in _TEXTS:
        if not isinstance(config.get(field, ""), str | type(None)):
            raise _odd(field, config[field], "a text", where)
    _refuse_odd_rope(config, where)
    refuse_odd_tokens(config, where)


def refuse_odd_wrapper(config: dict[str, Any], where: str = "config.json") -> None:
    """Look at what says which model it is, and which part of one that sees has its text.

    Raises:
        UserError: model_type is no text, or text_config no object.
    """
    text = config.get("text_config", {})
    for part in (config, text):
        if not isinstance(part, dict):
            raise _odd("text_config", part, "an object", where)
        if not isinstance(part.get("model_type", ""), str | type(None)):
            raise _odd("model_type", part["model_type"], "a text", where)


def refuse_odd_tokens(config: dict[str, Any], where: str) -> None:
    """Look at the tokens that begin and end texts.

    Raises:
        UserError: one is not a number of a token, or eos_token_id neither one nor a list of them.
    """
    for field in _TOKENS:
        value = config.get(field)
        several = isinstance(value, list) and field == "eos_token_id"
        if value is not None and not all(
            type(one) is int and abs(one) <= MOST["vocab_size"]
            for one in (value if several else [value])
        ):
            kind = "the number of a token"
            kind += " or a list of such" if field == "eos_token_id" else ""
            raise _odd(field, value, kind, where)


def is_number(value: Any, above: float = -math.inf) -> bool:
    """Tell whether a value is a number above another, and one that float32 holds."""
    return type(value) in (int, float) and abs(value) < _LARGEST and value > above


def _refuse_odd_rope(config: dict[str, Any], where: str) -> None:
    """RoPE is stated once, or for each kind of layer."""
    for field in ("rope_parameters", "rope_scaling"):
        stated = config.get(field)
        if stated is None:
            continue
        if not isinstance(stated, dict):
            raise _odd(field, stated, "an object", where)
        nested = [value for value in stated.values() if isinstance(value, dict)]
        for one in [stated, *nested]:
            for name in ("rope_type", "type"):
                if not isinstance(one.get(name, ""), str | type(None)):
                    raise _odd(f"{field}.{name}", one[name], "a text", where)
            for name in ("rope_theta", "factor", "original_max_position_embeddings"):
                if one.get(name) is not None and not is_number(one[name], above=0):
                    raise _odd(f"{field}.{name}", one[name], "a number above 0", where)


def _odd(field: str, value: Any, kind: str, where: str) -> UserError:
    return UserError(
        f"{field} is {in_brief(value)} in {where}, and should be {kind}; compare it with the one "
        "on the model's page"
    )
