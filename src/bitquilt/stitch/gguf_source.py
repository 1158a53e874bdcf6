"""What a GGUF source lends to the file made from it: its header, and its RoPE factors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitquilt.stitch.gguf_header import Metadata
from bitquilt.stitch.gguf_reader import open_gguf

ROPE_FACTORS = "rope_freqs.weight"

_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")
_DROPPED_PREFIXES = ("split.", "quantize.", "bitquilt.")
"""About the source's own file or how it was quantized, untrue of the new one."""


def kept_metadata(source: Path) -> Metadata:
    """Every pair of the source's header that still holds, byte for byte."""
    return {
        key: value
        for key, value in open_gguf(source).metadata.items()
        if key not in _REPLACED and not key.startswith(_DROPPED_PREFIXES)
    }


def source_rope_factors(source: Path) -> npt.NDArray[np.float32] | None:
    """The source's frequency divisors, float32 [head_dim / 2], if it has them."""
    file = open_gguf(source)
    if ROPE_FACTORS not in file.tensors:
        return None
    return file.data(ROPE_FACTORS).reshape(-1).view(np.float32)
