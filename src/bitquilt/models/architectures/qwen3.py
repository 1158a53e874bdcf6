"""Qwen 3, dense; MobileLLM-R1 is rewritten to it."""

from __future__ import annotations

from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import ROPE_SCALING, SWIGLU, no_bias
from bitquilt.models.architectures.tensors import ATTENTION, MLP, NORMS, QK_NORM

QWEN3 = Architecture(
    model_type="qwen3",
    gguf_architecture="qwen3",
    block={**ATTENTION, **QK_NORM, **MLP, **NORMS},
    conditions=(SWIGLU, *ROPE_SCALING, no_bias("qwen3")),
)
