"""What a GGUF source lends to the file made from it: its header, and its RoPE factors."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType

from bitquilt.gguf.container_write import Metadata
from bitquilt.gguf.metadata_read import ROPE_FREQS, read_header
from bitquilt.models.sources.gguf import dequantize

_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")
_DROPPED_PREFIXES = ("split.", "quantize.", "bitquilt.")
"""About the source's own file or how it was quantized, untrue of the new one."""

_FIXED_PREAMBLE = 16
"""Magic, version and tensor count, before the number of pairs."""
_SIZES = {
    GGUFValueType.UINT8: 1,
    GGUFValueType.INT8: 1,
    GGUFValueType.BOOL: 1,
    GGUFValueType.UINT16: 2,
    GGUFValueType.INT16: 2,
    GGUFValueType.UINT32: 4,
    GGUFValueType.INT32: 4,
    GGUFValueType.FLOAT32: 4,
    GGUFValueType.UINT64: 8,
    GGUFValueType.INT64: 8,
    GGUFValueType.FLOAT64: 8,
}


def kept_metadata(source: Path) -> Metadata:
    """Every pair of the source's header that still holds, byte for byte.

    Raises:
        UserError: the source is damaged.
    """
    read_header(source)
    return {
        key: value
        for key, value in _raw_pairs(source).items()
        if key not in _REPLACED and not key.startswith(_DROPPED_PREFIXES)
    }


def source_rope_factors(source: Path) -> npt.NDArray[np.float32] | None:
    """The source's frequency divisors, float32 [head_dim / 2], if it has them."""
    tensor = read_header(source).tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    factors: npt.NDArray[np.float32] = dequantize(source, tensor).numpy()
    return factors


def _raw_pairs(path: Path) -> Metadata:
    """Key → type and value as they stand in a sound file."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
    ):
        (count,) = struct.unpack_from("<Q", raw, _FIXED_PREAMBLE)
        at, pairs = _FIXED_PREAMBLE + 8, {}
        for _ in range(count):
            start = _after(raw, at, GGUFValueType.STRING)
            key = raw[at + 8 : start].decode()
            (kind,) = struct.unpack_from("<I", raw, start)
            at = _after(raw, start + 4, GGUFValueType(kind))
            pairs[key] = raw[start:at]
    return pairs


def _after(raw: mmap.mmap, at: int, kind: GGUFValueType) -> int:
    """Where the value of that type which starts at ``at`` ends."""
    if kind == GGUFValueType.STRING:
        return at + 8 + int(struct.unpack_from("<Q", raw, at)[0])
    if kind != GGUFValueType.ARRAY:
        return at + _SIZES[kind]
    element, count = struct.unpack_from("<IQ", raw, at)
    at, element = at + 12, GGUFValueType(element)
    if element in _SIZES:
        return at + int(count) * _SIZES[element]
    for _ in range(count):
        at = _after(raw, at, element)
    return at
