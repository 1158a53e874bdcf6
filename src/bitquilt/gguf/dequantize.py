"""The values of a GGUF file's tensors, decoded independently of bitquilt's own types.

gguf-py decodes those that it knows.
"""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType

_CHUNK_BYTES = 64 << 20


def dequantize(path: Path, tensor: GgufTensor, only: list[int] | None = None) -> torch.Tensor:
    """One tensor as float32, through row chunks so that memory stays near its float32 size.

    Args:
        path: the file.
        tensor: where it is there.
        only: the rows of a matrix that are wanted, if not all are.

    Raises:
        UserError: gguf-py has no decoder for its type.
    """
    stored = np.memmap(path, np.uint8, "r", tensor.offset, (tensor.nbytes,))
    try:
        return dequantized(stored, tensor, only)
    except NotImplementedError as error:
        raise UserError(
            f"{path} stores tensors as {tensor.type.name}, which gguf-py cannot decode; "
            "give another quantization of this model"
        ) from error


def dequantized(
    stored: npt.NDArray[np.uint8], tensor: GgufTensor, only: list[int] | None = None
) -> torch.Tensor:
    """Decode the data of a tensor, uint8 [bytes], in the same way.

    Raises:
        NotImplementedError: gguf-py has no decoder for its type.
    """
    columns = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    packed = stored.reshape(rows, tensor.nbytes // rows)
    shape = tensor.shape
    if only is not None:
        rows, shape = len(only), (len(only), columns)
    result = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        chunk = np.ascontiguousarray(packed[part if only is None else only[part]])
        result[part] = decoded(chunk, tensor.type)
    return torch.from_numpy(result.reshape(shape))


def decoded(packed: npt.NDArray[np.uint8], kind: GgmlType) -> npt.NDArray[np.float32]:
    """Decode rows of blocks, uint8 [R, bytes], into float32 [R, C].

    Raises:
        NotImplementedError: there is no decoder for the type.
    """
    if kind is GgmlType.Q2_0:
        return _q2_0(packed)
    values: npt.NDArray[np.float32] = gguf.dequantize(packed, kind)
    return values


def _q2_0(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Decode d · (code − 1), four codes in a byte (ggml-quants.c, dequantize_row_q2_0)."""
    _, nbytes = GGML_BLOCKS[GgmlType.Q2_0]
    blocks = packed.reshape(len(packed), -1, nbytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    codes = blocks[..., 2:, np.newaxis] >> np.array([0, 2, 4, 6], np.uint8) & 3
    steps = codes.astype(np.float32).reshape(*blocks.shape[:2], -1) - 1
    return (scales * steps).reshape(len(packed), -1)
