"""The matrices of a GGUF file, and stacks of them, decoded where the model is computed.

gguf-py decodes on one core, which for a model of 8 billion weights takes minutes. Here a matrix is
decoded by bitquilt's own types, and some of its rows by gguf-py too, to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor
from bitquilt.gguf.dequantize import dequantize
from bitquilt.gguf.header import read_parts
from bitquilt.models.checkpoint import PLAIN_TYPES
from bitquilt.models.sources.tensors import rows_to_look_at
from bitquilt.runtime.device import compute_device


def decode_named(path: Path) -> Callable[[str], Tensor]:
    """Return what decodes the tensors of a file, or of all its parts, by their names there."""
    parts = read_parts(path)
    places = {name: (part.path, part.tensors[name]) for part in parts for name in part.tensors}
    return lambda name: decode_on_device(*places[name])


def decode_on_device(path: Path, tensor: GgufTensor) -> Tensor:
    """Decode one tensor to float32, on the device that is computed on.

    Raises:
        UserError: gguf-py decodes some rows to other numbers, or has no decoder for the type.
    """
    device, kind = compute_device(), tensor.type.name
    own_type = len(tensor.shape) > 1 and kind not in PLAIN_TYPES and kind in qtypes.names("gguf")
    if not own_type:
        return dequantize(path, tensor).to(device)
    rows = math.prod(tensor.shape[:-1])
    stored = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
    packed = torch.from_numpy(stored).view(rows, -1).to(device)
    matrix = qtypes.get(kind).dequantize({"data": packed})
    looked_at = rows_to_look_at(rows)
    ours, theirs = matrix[looked_at].cpu(), dequantize(path, tensor, looked_at)
    if not torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True):
        raise UserError(
            f"{path}: gguf-py decodes the {kind} at byte {tensor.offset:,} to other numbers than "
            "bitquilt does; report this file and the version of gguf"
        )
    return matrix.view(tensor.shape)
