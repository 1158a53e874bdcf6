"""ggml's own rounding and decoding; of types new to gguf-py and libgguf, the pinned library's."""

from __future__ import annotations

import ctypes

import gguf
import libgguf
import numpy as np
from gguf import quants

from bitquilt.engines.llama_api import load_library
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType


def ggml_quantizes(
    name: str, weight: np.ndarray, importance: np.ndarray | None = None
) -> np.ndarray:
    """Rows float32 [R, C] as ggml rounds them, with importance [C] where it takes any."""
    if name in libgguf.GGMLQuantizationType.__members__:
        kind = libgguf.GGMLQuantizationType[name]
        return np.asarray(libgguf.quantize_rows(weight, kind, imatrix=importance))
    weight = np.ascontiguousarray(weight, np.float32)
    block, nbytes = GGML_BLOCKS[GgmlType[name]]
    made = np.empty((len(weight), weight.shape[1] // block * nbytes), np.uint8)
    _call(f"quantize_row_{name.lower()}_ref", weight, made, weight.size)
    return made


def ggml_dequantizes(name: str, data: np.ndarray) -> np.ndarray:
    """Rows of blocks uint8 [R, bytes] as numbers: by gguf-py where it can, else by ggml."""
    if name in gguf.GGMLQuantizationType.__members__:
        return quants.dequantize(data, gguf.GGMLQuantizationType[name])
    data = np.ascontiguousarray(data)
    block, nbytes = GGML_BLOCKS[GgmlType[name]]
    numbers = np.empty((len(data), data.shape[1] // nbytes * block), np.float32)
    _call(f"dequantize_row_{name.lower()}", data, numbers, numbers.size)
    return numbers


def _call(function: str, source: np.ndarray, into: np.ndarray, count: int) -> None:
    convert = getattr(load_library(), function)
    convert.argtypes, convert.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    convert(source.ctypes.data, into.ctypes.data, count)
