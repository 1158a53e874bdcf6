"""Mistral and Ministral, and the text half of Mistral 3 (Magistral Small).

llama.cpp has no architecture of this name: GGUF files say llama, which computes the same within
one sliding window.
"""

from __future__ import annotations

from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.conditions import ROPE_SCALING, SWIGLU
from bitquilt.models.architectures.tensors import ATTENTION, MLP, NORMS

MISTRAL = Architecture(
    model_type="mistral",
    gguf_architecture="llama",
    block={**ATTENTION, **MLP, **NORMS},
    conditions=(SWIGLU, *ROPE_SCALING),
    wrappers=("mistral3",),
    interleaved=True,
    window_everywhere=True,
    reads_rope_freqs=True,
)
