"""A model as mlx-lm reads it before it quantizes it."""

from __future__ import annotations

from pathlib import Path

from bitquilt import qtypes
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.targets import get_target


def unquantized(checkpoint: Checkpoint, directory: Path) -> Path:
    """Write a model as an MLX directory in float32, and return where it is."""

    def packed(module: str, name: str) -> Packed:
        return qtypes.get(name).pack({"codes": checkpoint.load(f"{module}.weight")})

    everything = dict.fromkeys(checkpoint.matrices, "F32")
    get_target("mlx").write(checkpoint, everything, packed, directory, "{}")
    return directory
