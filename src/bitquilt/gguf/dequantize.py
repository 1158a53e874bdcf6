"""The values of a GGUF file's tensors, decoded by gguf-py independently of bitquilt's own types."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor

_CHUNK_BYTES = 64 << 20


def dequantize(path: Path, tensor: GgufTensor) -> torch.Tensor:
    """One tensor as float32, through row chunks so that memory stays near its float32 size.

    Raises:
        UserError: gguf-py has no decoder for its type.
    """
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    row_bytes = tensor.nbytes // rows
    packed = np.memmap(path, np.uint8, "r", tensor.offset, (rows, row_bytes))
    result = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        chunk = np.ascontiguousarray(packed[start : start + step])
        try:
            result[start : start + step] = gguf.dequantize(chunk, tensor.type)
        except NotImplementedError as error:
            raise UserError(
                f"{path} stores tensors as {tensor.type.name}, which gguf-py cannot decode; "
                "give another quantization of this model"
            ) from error
    return torch.from_numpy(result.reshape(tensor.shape))
