"""ggml's own functions: rows of weights → rows of blocks, with importance, and back.

They are llama.cpp's, byte for byte, and are called in the library that runs the files too:
xllamacpp exports them on Linux and macOS. On Windows, where it does not, libgguf has the same ones.
Each call lets go of Python, so that threads round side by side.

Letters: R rows, C columns.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitquilt.errors import UserError
from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType

Float32Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]

PLAIN_KINDS = (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
"""The types of single numbers."""


def row_bytes(kind: GgmlType, columns: int) -> int:
    """Return the bytes of a row of a type whose block divides it."""
    block, nbytes = GGML_BLOCKS[kind]
    return int(columns // block * nbytes)


def fits(kind: GgmlType, columns: int) -> bool:
    """Tell whether a row of that length can be stored as this type."""
    return bool(columns % GGML_BLOCKS[kind][0] == 0)


def quantize_rows(kind: GgmlType, weight: Float32Array, importance: Float32Array | None) -> Bytes:
    """Round rows as llama-quantize does.

    Args:
        kind: the type; call :func:`prepare` first where threads call this.
        weight: float32 [R, C], contiguous.
        importance: float32 [C], mean square of each input; None weighs all alike.

    Returns:
        uint8 [R, bytes of a row].
    """
    if kind in PLAIN_KINDS:
        return _plain_bytes(kind, weight)
    if importance is None and _needs_importance(kind):
        importance = np.ones(weight.shape[1], np.float32)
    stored = np.empty((len(weight), row_bytes(kind, weight.shape[1])), np.uint8)
    _functions().quantize(kind, weight, stored, importance)
    return stored


def dequantize_rows(kind: GgmlType, stored: Bytes, columns: int) -> Float32Array:
    """Return the float32 [R, C] that rows of blocks, uint8 [R, bytes of a row], stand for.

    Raises:
        UserError: ggml has no decoder for the type.
    """
    if kind == GgmlType.BF16:
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind == GgmlType.F16:
        return stored.view(np.float16).astype(np.float32)
    if kind == GgmlType.F32:
        return stored.view(np.float32)
    weight = np.empty((len(stored), columns), np.float32)
    _functions().dequantize(kind, stored, weight)
    return weight


def prepare(kind: GgmlType) -> None:
    """Build the tables of a type: threads that come first together would build them twice."""
    if kind not in PLAIN_KINDS:
        quantize_rows(kind, np.zeros((1, GGML_BLOCKS[kind][0]), np.float32), None)


def _plain_bytes(kind: GgmlType, weight: Float32Array) -> Bytes:
    if kind == GgmlType.F32:
        return weight.view(np.uint8)
    if kind == GgmlType.F16:
        return weight.astype(np.float16).view(np.uint8)
    bits = weight.view(np.uint32)  # to nearest, ties to even, as ggml_fp32_to_bf16
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)


def _needs_importance(kind: GgmlType) -> bool:
    """Tell whether ggml refuses to round to a type without importance."""
    return kind in (GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ1_S, GgmlType.IQ1_M)


class _Functions:
    """Where ggml's functions are called."""

    quantize: Callable[[GgmlType, Float32Array, Bytes, Float32Array | None], None]
    dequantize: Callable[[GgmlType, Bytes, Float32Array], None]


class _TypeTraits(ctypes.Structure):
    """The start of ``ggml_type_traits``, as ggml.h has it."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class InEngine(_Functions):
    """ggml in xllamacpp's library, which need not be imported for it."""

    def __init__(self, path: Path) -> None:
        """Open the library.

        Raises:
            OSError: it cannot be opened.
            AttributeError: it does not export ggml's functions.
        """
        library = ctypes.CDLL(str(path))
        self._chunk = library.ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
        ]
        self._traits = library.ggml_get_type_traits
        self._traits.restype = ctypes.POINTER(_TypeTraits)
        self._traits.argtypes = [ctypes.c_int]

    def quantize(
        self, kind: GgmlType, weight: Float32Array, stored: Bytes, importance: Float32Array | None
    ) -> None:
        """Round float32 [R, C] into uint8 [R, bytes of a row]."""
        weighing = None if importance is None else importance.ctypes.data
        rows, columns = weight.shape
        self._chunk(kind, weight.ctypes.data, stored.ctypes.data, 0, rows, columns, weighing)

    def dequantize(self, kind: GgmlType, stored: Bytes, weight: Float32Array) -> None:
        """Decode uint8 [R, bytes of a row] into float32 [R, C]."""
        to_float = self._traits(kind).contents.to_float
        if not to_float:
            raise UserError(
                f"the source stores tensors as {kind.name}, which ggml cannot decode; give the "
                "BF16 file of this model"
            )
        to_float(stored.ctypes.data, weight.ctypes.data, weight.size)


class InLibgguf(_Functions):
    """The same functions in libgguf."""

    def quantize(
        self, kind: GgmlType, weight: Float32Array, stored: Bytes, importance: Float32Array | None
    ) -> None:
        """Round float32 [R, C] into uint8 [R, bytes of a row].

        Raises:
            UserError: libgguf does not know the type yet.
        """
        import libgguf

        if kind.name not in libgguf.GGMLQuantizationType.__members__:
            raise UserError(
                f"on {sys.platform} matrices are rounded by libgguf, which has no {kind.name}; "
                f"leave {kind.name} out of the recipe"
            )
        libgguf.quantize_rows_into_raw(kind, weight, stored, *weight.shape, importance)

    def dequantize(self, kind: GgmlType, stored: Bytes, weight: Float32Array) -> None:
        """Decode uint8 [R, bytes of a row] into float32 [R, C]."""
        import libgguf

        libgguf.dequantize_rows_into_raw(kind, stored, weight, *weight.shape)


@cache
def _functions() -> _Functions:
    for path in _libraries():
        with suppress(OSError, AttributeError):
            return InEngine(path)
    if importlib.util.find_spec("libgguf") is not None:
        return InLibgguf()
    raise UserError(
        f"neither xllamacpp nor libgguf offers ggml's quantizer on {sys.platform}; install it with "
        "`pip install libgguf`"
    )


def _libraries() -> list[Path]:
    """Return the files of xllamacpp that may be its library."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return [path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))]
