"""What a config must say for a model to be the same in every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bitquilt.models.config import ModelConfig, rope


@dataclass(frozen=True)
class Condition:
    """What one field must be; a config that says otherwise is refused by the field's name."""

    field: str
    holds: Callable[[ModelConfig], bool]
    because: str
    """Why, as the second half of a sentence."""
    converted: bool = False
    """Whether an engine runs a model without it that its own converter wrote; then the model goes
    by its base."""


def first_failed(config: ModelConfig, conditions: Iterable[Condition]) -> Condition | None:
    """The condition that a config does not meet: the first of those that no base mends, if any."""
    failed = [one for one in conditions if not one.holds(config)]
    return min(failed, key=lambda one: one.converted, default=None)


def rope_type(config: ModelConfig) -> str:
    """The kind of RoPE scaling, in transformers' words."""
    return str(rope(config).get("rope_type", "default"))


def activation(config: ModelConfig) -> str | None:
    """The MLP's activation, which Gemma names in a field of its own."""
    return config.get("hidden_act") or config.get("hidden_activation")


COMMON = (
    Condition(
        "rope_parameters",
        lambda c: rope(c).get("partial_rotary_factor", 1.0) == 1.0,
        "engines rotate whole heads, not a part of them",
        converted=True,  # transformers rotates whole ones, too, whatever the field is
    ),
    Condition(
        "num_key_value_heads",
        lambda c: c["num_attention_heads"] % c["num_key_value_heads"] == 0,
        "query heads must share KV heads evenly",
    ),
)
"""Conditions on every family."""

SWIGLU = Condition("hidden_act", lambda c: activation(c) == "silu", "the MLP must be SwiGLU")

ROPE_SCALING = (
    Condition(
        "rope_parameters",
        lambda c: rope_type(c) in ("default", "linear", "llama3", "yarn", "dynamic"),
        "engines know the RoPE types default, linear, llama3 and yarn",
    ),
    Condition(
        "rope_parameters",
        lambda c: rope_type(c) != "dynamic",
        "dynamic RoPE depends on the length of the text",
        converted=True,  # within its context it is plain
    ),
)


def no_bias(family: str) -> Condition:
    """The condition that attention has no biases, for a family that engines run without them."""
    return Condition(
        "attention_bias", lambda c: not c["attention_bias"], f"engines run {family} without biases"
    )
