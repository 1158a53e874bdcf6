"""One value for each family of models: everything that bitquilt knows of it, in one file.

To add a family that engines run, say Granite:

1. Write ``granite.py`` here with one
   :class:`~bitquilt.models.architectures.architecture.Architecture`; ``qwen3.py`` is the shortest
   example. Its tensors are tables of :mod:`~bitquilt.models.architectures.tensors`, its conditions
   say which configs engines compute exactly, and everything else has a default that is right for a
   plain decoder.
2. Add the value to :data:`ARCHITECTURES` below.

Nothing else compares a ``model_type``. The tests of ``tests/models`` run over the registry: give
``tests/factories.py`` a tiny checkpoint of the family, and they compare logits with transformers',
names with gguf-py's, and files with llama.cpp's.

A family that no engine runs as published, but that another family computes exactly in other words,
is a :class:`~bitquilt.models.architectures.rewrite.Rewrite` in :data:`REWRITES` (``llama4.py``).
"""

from __future__ import annotations

from typing import Any

from bitquilt.models.architectures.architecture import Architecture
from bitquilt.models.architectures.gemma3 import GEMMA3
from bitquilt.models.architectures.llama import LLAMA
from bitquilt.models.architectures.llama4 import LLAMA4
from bitquilt.models.architectures.mistral import MISTRAL
from bitquilt.models.architectures.qwen2 import QWEN2
from bitquilt.models.architectures.qwen3 import QWEN3
from bitquilt.models.architectures.rewrite import Rewrite

__all__ = [
    "ARCHITECTURES",
    "GGUF_ARCHITECTURES",
    "REWRITES",
    "WRAPPERS",
    "Architecture",
    "Rewrite",
    "architecture_of",
]

ARCHITECTURES: dict[str, Architecture] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3)
}
"""Canonical model_type → family, as engines run it."""

REWRITES: dict[str, Rewrite] = {family.model_type: family for family in (LLAMA4,)}
"""Published model_type → how it becomes one of :data:`ARCHITECTURES`."""

WRAPPERS: dict[str, str] = {
    wrapper: family.model_type for family in ARCHITECTURES.values() for wrapper in family.wrappers
}
"""Multimodal model_type → model_type of its text half, which is all that is kept."""

GGUF_ARCHITECTURES: dict[str, Architecture] = {}
"""``general.architecture`` → family that a file is read as: the first that is written so."""

for _family in ARCHITECTURES.values():
    GGUF_ARCHITECTURES.setdefault(_family.gguf_architecture, _family)


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The family of a canonical config."""
    return ARCHITECTURES[config["model_type"]]
