"""Qwen 2 and 2.5, and what DeepSeek R1 distilled into them."""

from __future__ import annotations

from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import ROPE_SCALING, SWIGLU
from bitquilt.models.architectures.tensors import ATTENTION, ATTENTION_BIAS, MLP, NORMS

QWEN2 = Architecture(
    model_type="qwen2",
    gguf_architecture="qwen2",
    block={**ATTENTION, **ATTENTION_BIAS, **MLP, **NORMS},
    conditions=(SWIGLU, *ROPE_SCALING),
    is_70b=lambda config: bool(config["num_hidden_layers"] == 80),
)
