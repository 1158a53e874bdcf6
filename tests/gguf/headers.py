"""Headers without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from bitquilt.gguf.container import Container, GgufTensor
from bitquilt.gguf.header import GgufHeader


def in_a_file(metadata: dict[str, Any], vocabulary: int) -> GgufHeader:
    """The header of a file that has this metadata and an embedding."""
    embedding = GgufTensor(GGMLQuantizationType.F32, (vocabulary, 1), 0, 4 * vocabulary)
    return GgufHeader(Path("m.gguf"), Container(metadata, {}, {"token_embd.weight": embedding}))
