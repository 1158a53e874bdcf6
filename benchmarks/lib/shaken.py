"""A quantized model with its weights moved off the levels of its source.

The real models at hand are quantized themselves, and types that hold their levels would win by that
alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.models import open_checkpoint
from bitquilt.qtypes.qtype import Packed
from bitquilt.targets import GGUF

BLOCK = 16
"""Weights of the smallest block that shares a step."""


def shaken(source: Path, directory: Path) -> Path:
    """Write the model in BF16 with each weight moved by up to half a step of its source."""
    checkpoint = open_checkpoint(source)
    generator = torch.Generator().manual_seed(0)

    def packed(module: str, qtype: str) -> Packed:
        name = f"{module}.weight"
        weight, stored = checkpoint.load(name), checkpoint.tensor_types[name]
        return qtypes.get(qtype).pack(
            {"codes": moved(weight, width_of(stored), generator).bfloat16()}
        )

    path = directory / f"{source.stem}-shaken.gguf"
    GGUF.write(checkpoint, dict.fromkeys(checkpoint.matrices, "BF16"), packed, path, "{}")
    return path


def width_of(stored: str) -> int:
    """Return the bits of a code of a quantized type: 4 of Q4_K."""
    digits = re.search(r"\d+", stored)
    return int(digits[0]) if digits else 16


def moved(weight: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Move weights [R, C] by up to half a step of codes of that width, in blocks of 16."""
    blocks = weight.float().reshape(len(weight), -1, BLOCK)
    step = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / (2**width - 1)
    noise = torch.rand(blocks.shape, generator=generator) - 0.5
    return (blocks + noise * step).reshape(weight.shape)
