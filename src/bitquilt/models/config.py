"""Configs: defaults filled in, RoPE written in both of the ways that engines read.

Configs on the hub leave out whatever equals transformers' default of the day, so the defaults are
taken from transformers' own config classes.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import CONFIG_MAPPING

from bitquilt.errors import UserError

ModelConfig = dict[str, Any]
"""The fields of a config.json, in transformers' words."""

_HOUSEKEEPING = frozenset(
    {
        "_name_or_path",
        "chunk_size_feed_forward",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
    }
)
"""Fields that every transformers config has and that say nothing about a language model."""


def complete(config: ModelConfig) -> ModelConfig:
    """The config with every default filled in and RoPE stated twice.

    transformers 5 nests ``rope_theta`` in ``rope_parameters``; mlx-lm's llama reads the top level
    and silently takes 10000 where it is missing. Both are written, from one value.

    Raises:
        UserError: transformers finds the config contradictory.
    """
    model_type = config["model_type"]
    try:
        full = CONFIG_MAPPING[model_type](**copy.deepcopy(config)).to_dict()
    except Exception as error:  # whatever the class of a type raises
        said = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        reason = re.sub(r"^\w*Error: ", "", said).rstrip(".")
        raise UserError(
            f"config.json does not make a valid {model_type} model: {reason}; "
            "compare it with the one on the model's page"
        ) from error
    kept = {field: value for field, value in full.items() if field not in _HOUSEKEEPING}
    return {**kept, "model_type": model_type, **_top_level_rope(full)}


def rope(config: ModelConfig) -> dict[str, Any]:
    """RoPE parameters of the full-attention layers: ``rope_theta``, ``rope_type``, scaling."""
    parameters: dict[str, Any] = config["rope_parameters"]
    return {"rope_type": "default", **parameters.get("full_attention", parameters)}


def head_dim(config: ModelConfig) -> int:
    """The width of one attention head, which not every config states."""
    stated = config.get("head_dim")
    return int(stated or config["hidden_size"] // config["num_attention_heads"])


def _top_level_rope(full: dict[str, Any]) -> dict[str, Any]:
    """The fields that transformers before 5, and mlx-lm, read RoPE from."""
    parameters = rope(full)
    theta = parameters.pop("rope_theta")
    scaled = parameters.get("rope_type", "default") != "default"
    fields = {"rope_theta": float(theta), "rope_scaling": parameters if scaled else None}
    if "sliding_attention" in full["rope_parameters"]:
        local = full["rope_parameters"]["sliding_attention"]
        fields["rope_local_base_freq"] = float(local["rope_theta"])
    return fields
