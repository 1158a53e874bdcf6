"""Whether the numbers of a GGUF file are numbers, without decoding it: scales are looked at alone.

A block's codes are whole numbers, so a weight is NaN or infinite only where a scale is; but MXFP4
has scales so large that their products with larger codes are infinite. NVFP4 has no such numbers:
ggml reads the code that would be NaN as 0. The places of scales are those of ggml-common.h.
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
IQ1_M_TOPS = (49, 51, 53, 55)
"""Where in a block of IQ1_M the quarters of its float16 number are, the lowest first."""


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
    blocks = stored.reshape(-1, GGML_BLOCKS[tensor.type][1])
    if tensor.type is Type.IQ1_M:
        return _finite_halves(_iq1_m_scales(blocks))
    if tensor.type is Type.MXFP4:
        return _finite_mxfp4(blocks)
    if tensor.type not in SCALE_PLACES:
        return True
    halves = blocks.view(np.uint16)
    return all(_finite_halves(halves[:, at // 2]) for at in SCALE_PLACES[tensor.type])


def _finite_halves(bits: NDArray[np.uint16]) -> bool:
    """Whether float16 numbers are all finite, given their bits."""
    _, ones = PLAIN_NUMBERS[Type.F16]
    return not ((bits & ones) == ones).any()


def _iq1_m_scales(blocks: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Put the bits of IQ1_M's scales together: a quarter is at the top of each of four words."""
    tops = blocks[:, IQ1_M_TOPS].astype(np.uint16) >> 4
    joined: NDArray[np.uint16] = (tops << np.array([0, 4, 8, 12], np.uint16)).sum(1, np.uint16)
    return joined


def _finite_mxfp4(blocks: NDArray[np.uint8]) -> bool:
    """Whether 2^(e - 128) times 0, 1, 2, 3, 4, 6, 8 or 12 is finite, e the first byte of a block.

    The codes of these numbers are 0 … 7; with their signs, they are the halves of the other bytes.
    """
    large = blocks[blocks[:, 0] > 252].astype(np.int64)
    first_infinite = 2 * (256 - large[:, :1])  # 2, 4, 8: from 2^128 on there is no float32
    return not any(
        (codes >= first_infinite).any() for codes in (large[:, 1:] & 7, large[:, 1:] >> 4 & 7)
    )
