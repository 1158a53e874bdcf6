"""The sampling that a model's authors recommend, as a GGUF file carries it."""

from __future__ import annotations

from typing import Any

SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
"""Field of generation_config.json → metadata key."""


def sampling_keys(generation: dict[str, Any]) -> dict[str, int | float]:
    """The keys of a generation_config.json, which llama.cpp takes as its defaults."""
    if not generation.get("do_sample"):
        return {}
    said = {field: value for field, value in generation.items() if value is not None}
    sampled = {"temperature": 1.0, **said}  # as transformers has it
    stated = {key: sampled[field] for field, key in SAMPLING_KEYS.items() if field in sampled}
    return {key: int(v) if key.endswith("top_k") else float(v) for key, v in stated.items()}
