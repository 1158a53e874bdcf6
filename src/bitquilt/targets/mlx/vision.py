"""What sees of a model, in its MLX directory: as mlx-vlm reads it, and mlx-lm passes over it.

The language model has the names and the config.json of its wrapper, which both know. The vision
tower and the projector are in a file of their own, not quantized, under mlx-vlm's names: mlx-lm
reads ``model*.safetensors`` alone. Source: mlx-vlm's ``load_model`` and ``models/mistral3``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitquilt.bases.vision import vision_shapes
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.quantized import QuantizedTensor, joined
from bitquilt.models.sources.safetensors import StoredTensor
from bitquilt.runtime.files import atomic_write
from bitquilt.targets.mlx.layout import (
    HEADER_ALIGNMENT,
    Part,
    has_wrapper,
    header_text,
    is_of_vision,
    is_wrapped,
    offsets_of,
)

VISION_FILE = "vision.safetensors"
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
"""What mlx-vlm makes numbers of images by."""
_TOWER, _TOWER_IN_MLX = "vision_tower.", "vision_tower.vision_model."
_PATCHES = "patch_conv.weight"
"""The convolution, [O, I, H, W] in torch and [O, H, W, I] in MLX."""
VisionShapes = Mapping[str, tuple[str, tuple[int, ...]]]
"""mlx-vlm's name of a tensor → its dtype and its shape in the source."""
_PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def vision_tower_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of the file that :func:`write_vision_tower` writes; 0 where there is none.

    Raises:
        UserError: there is a config alone, and transformers does not know a field of it.
    """
    if not is_wrapped(checkpoint):
        return 0
    config = checkpoint.original_config
    if checkpoint.vision is None:
        found = _shapes_by(json.dumps(config))
        shapes: VisionShapes = {_in_mlx(name): ("BF16", shape) for name, shape in found}
    else:
        shapes = _stored_shapes(_stored(checkpoint.vision, config))
    parts = _parts(shapes)
    return len(_header(parts)) + sum(part.nbytes for part in parts)


def write_vision_tower(source: Path, config: Mapping[str, Any], directory: Path) -> None:
    """Write the tower and the projector of a model into its MLX directory, and what they need.

    Args:
        source: of the original.
        config: its config.json.
        directory: of the language model; nothing is written where its wrapper is not one that
            mlx-vlm reads with it.
    """
    if not has_wrapper(config) or not (stored := _stored(source, config)):
        return
    parts = _parts(_stored_shapes(stored))
    for name, raw in image_files(source).items():
        (directory / name).write_bytes(raw)
    with atomic_write(directory / VISION_FILE) as beside, beside.open("wb") as file:
        file.write(_header(parts))
        for part in parts:
            tensor = _tensor(*stored[part.name]).to(_PLAIN[part.dtype])
            if part.name.endswith(_PATCHES):
                tensor = tensor.permute(0, 2, 3, 1)
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def image_files(source: Path) -> dict[str, bytes]:
    """Return the files of a model that say how images become numbers: name → content."""
    there = [source / name for name in IMAGE_FILES]
    return {file.name: file.read_bytes() for file in there if file.exists()}


def _stored(source: Path, config: Mapping[str, Any]) -> dict[str, tuple[str, StoredTensor]]:
    """mlx-vlm's name of each tensor that sees → its name in the source, and where it is."""
    scanned = joined(safetensors.scan(safetensors.files(source)), dict(config))
    own = {name.removeprefix("model."): (name, at) for name, at in scanned.items()}
    return {_in_mlx(name): at for name, at in sorted(own.items()) if is_of_vision(name)}


def _in_mlx(name: str) -> str:
    return name.replace(_TOWER, _TOWER_IN_MLX, 1) if name.startswith(_TOWER) else name


def _stored_shapes(stored: Mapping[str, tuple[str, StoredTensor]]) -> VisionShapes:
    return {name: (at.dtype, tuple(at.shape)) for name, (_, at) in stored.items()}


def _parts(shapes: VisionShapes) -> list[Part]:
    """List the tensors in file order: wide items first, so that all are aligned."""
    parts = []
    for name, (dtype, shape) in shapes.items():
        own = (shape[0], *shape[2:], shape[1]) if name.endswith(_PATCHES) else shape
        parts.append(Part(name, dtype if dtype in _PLAIN else "BF16", own))
    return sorted(parts, key=lambda part: -part.item_size)


@cache
def _shapes_by(config: str) -> list[tuple[str, tuple[int, ...]]]:
    return sorted(vision_shapes(json.loads(config)).items())


def _header(parts: list[Part]) -> bytes:
    text = header_text(parts, offsets_of(parts)).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _tensor(name: str, at: StoredTensor) -> Tensor:
    return at.decoded() if isinstance(at, QuantizedTensor) else safetensors.read_raw(name, at)
