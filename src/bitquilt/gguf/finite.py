"""Whether the numbers of a GGUF file are numbers, without decoding it: scales are looked at alone.

A block's codes are whole numbers, so a weight is NaN or infinite only where a scale is. The places
of scales are those of ggml-common.h.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitquilt.gguf.container import GgufTensor, read_container
from bitquilt.gguf.ggml_type import GGML_BLOCKS
from bitquilt.gguf.ggml_type import GgmlType as Type

PLAIN_NUMBERS = {
    Type.F32: (np.uint32, 0x7F80_0000),
    Type.F16: (np.uint16, 0x7C00),
    Type.BF16: (np.uint16, 0x7F80),
}
"""Type of single numbers → as what they are read, and the bits that all are 1 in NaN and infinity
alone."""
SCALE_PLACES = {
    Type.Q4_0: (0,),
    Type.Q4_1: (0, 2),
    Type.Q5_0: (0,),
    Type.Q5_1: (0, 2),
    Type.Q8_0: (0,),
    Type.Q2_0: (0,),
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ1_S: (0,),
    Type.IQ2_XXS: (0,),
    Type.IQ2_XS: (0,),
    Type.IQ2_S: (0,),
    Type.IQ3_XXS: (0,),
    Type.IQ3_S: (0,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.TQ1_0: (52,),
    Type.TQ2_0: (64,),
}
"""Type of blocks → where in a block its float16 numbers are, in bytes."""


def broken_tensor(path: Path) -> str | None:
    """Name the first tensor with a NaN or infinite number; None where there is none.

    Tensors of types that are not known here are passed over.

    Raises:
        ValueError: the file is not GGUF, or is damaged.
    """
    for name, tensor in read_container(path).tensors.items():
        if not _finite(np.memmap(path, np.uint8, "r", tensor.offset, (tensor.nbytes,)), tensor):
            return name
    return None


def _finite(stored: NDArray[np.uint8], tensor: GgufTensor) -> bool:
    """Whether all numbers of a tensor are finite, given its bytes."""
    if tensor.type in PLAIN_NUMBERS:
        dtype, ones = PLAIN_NUMBERS[tensor.type]
        return not ((stored.view(dtype) & ones) == ones).any()
    if tensor.type not in SCALE_PLACES:
        return True
    _, nbytes = GGML_BLOCKS[tensor.type]
    halves = stored.view(np.uint16).reshape(-1, nbytes // 2)
    _, ones = PLAIN_NUMBERS[Type.F16]
    return not any(((halves[:, at // 2] & ones) == ones).any() for at in SCALE_PLACES[tensor.type])
