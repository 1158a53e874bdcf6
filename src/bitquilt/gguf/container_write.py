"""The header of a GGUF file, version 3: key-value pairs and tensor descriptions, little-endian.

    magic "GGUF" | version u32 | tensor count u64 | pair count u64
    pair:    key string | type u32 | value
    tensor:  name string | rank u32 | dimensions u64 each, fastest first | type u32 | offset u64
    padding to 32 bytes, then the data, each tensor padded to 32 bytes

A string is its length in bytes as u64, then UTF-8; an array is element type u32, count u64, then
the elements. Source: the GGUF specification, docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType, GGUFValueType

ALIGNMENT = 32
VERSION = 3

Scalar = bool | int | float | str
Value = Scalar | Sequence[str] | Sequence[int] | Sequence[float]

Metadata = dict[str, bytes]
"""Key → its type and value as they stand in the file."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file; ``shape`` is rows first, as in PyTorch."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int


def aligned(size: int) -> int:
    """``size`` rounded up to the file's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode_string(text: str) -> bytes:
    """Length and UTF-8 bytes."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def encode(value: Value) -> bytes:
    """Type and value of one pair: int → uint32 (int32 inside an array), float → float32."""
    if isinstance(value, str):
        return struct.pack("<I", GGUFValueType.STRING) + encode_string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", GGUFValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", GGUFValueType.FLOAT32, value)
    return struct.pack("<I", GGUFValueType.ARRAY) + _encode_elements(value)


def _encode_elements(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    if all(isinstance(value, str) for value in values):
        kind, body = GGUFValueType.STRING, b"".join(encode_string(str(v)) for v in values)
    elif all(isinstance(value, int) for value in values):
        kind, body = GGUFValueType.INT32, struct.pack(f"<{len(values)}i", *values)
    else:
        kind, body = GGUFValueType.FLOAT32, struct.pack(f"<{len(values)}f", *values)
    return struct.pack("<IQ", kind, len(values)) + body


def metadata_bytes(metadata: Mapping[str, bytes]) -> int:
    """Bytes that these pairs take in the header."""
    return sum(len(encode_string(key)) + len(value) for key, value in metadata.items())


def header(metadata: Mapping[str, bytes], tensors: Sequence[TensorInfo]) -> bytes:
    """The whole header, padded to where the first tensor starts."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [encode_string(key) + value for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        parts.append(_encode_tensor(tensor, offset))
        offset += aligned(tensor.nbytes)
    raw = b"".join(parts)
    return raw + bytes(aligned(len(raw)) - len(raw))


def _encode_tensor(tensor: TensorInfo, offset: int) -> bytes:
    rank = len(tensor.shape)
    return (
        encode_string(tensor.name)
        + struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
        + struct.pack("<IQ", tensor.type, offset)
    )
