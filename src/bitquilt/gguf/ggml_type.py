"""The numbers of ggml's types in a GGUF file, and the bytes of their blocks.

The pinned llama.cpp has types that gguf-py does not know yet. Members are integers, so each equals
gguf-py's of the same number.
Source: ggml-org/llama.cpp, ggml/include/ggml.h (enum ggml_type), ggml/src/ggml-common.h.
"""

from __future__ import annotations

from enum import IntEnum

import gguf


class GgmlType(IntEnum):
    """A type of tensors, by the name that llama.cpp prints."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


GGML_BLOCKS: dict[GgmlType, tuple[int, int]] = {
    **{GgmlType(int(kind)): size for kind, size in gguf.GGML_QUANT_SIZES.items()},
    GgmlType.Q2_0: (64, 18),
}
"""Type → weights in a block and its bytes."""
