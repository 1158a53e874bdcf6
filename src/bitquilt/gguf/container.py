"""The bytes of a GGUF file around its tensors, read and written.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian; version 3 is
written, 2 and 3 are read)::

    magic "GGUF" · version u32 · tensors u64 · metadata pairs u64
    pair:    key string · type u32 · value
    tensor:  name string · dimensions u32 · sizes u64 each, fastest first · type u32 · offset u64
    padding to the alignment, then the data, each tensor padded to the alignment

A string is its length in bytes as u64, then UTF-8. An array is element type u32, count u64, then
the elements. The alignment is 32 bytes unless ``general.alignment`` says otherwise.

The header is read in one pass: gguf-py's reader makes several numpy arrays of every token and
merge, which takes seconds for a vocabulary of 128k, against a fraction of one here.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bitquilt.gguf.ggml_type import GGML_BLOCKS, GgmlType

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
VERSION = 3

HEADER_ONLY = "bitquilt.header_only"
"""What files have that are a header alone (:mod:`bitquilt.gguf.header_only`)."""

Scalar = bool | int | float | str
MetadataValue = Scalar | Sequence[str] | Sequence[int] | Sequence[float]

Metadata = dict[str, bytes]
"""Key → its type and value as they stand in the file."""

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_SCALARS = {
    gguf.GGUFValueType.UINT8: "B",
    gguf.GGUFValueType.INT8: "b",
    gguf.GGUFValueType.UINT16: "H",
    gguf.GGUFValueType.INT16: "h",
    gguf.GGUFValueType.UINT32: "I",
    gguf.GGUFValueType.INT32: "i",
    gguf.GGUFValueType.FLOAT32: "f",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "Q",
    gguf.GGUFValueType.INT64: "q",
    gguf.GGUFValueType.FLOAT64: "d",
}
"""Value type → struct code, which numpy shares."""


class UnknownTypeError(ValueError):
    """A tensor is stored in a type that has no name here; nothing is damaged."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file to write; ``shape`` is rows first, as in PyTorch."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    nbytes: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file that was read."""

    type: GgmlType
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


@dataclass(frozen=True)
class Container:
    """Everything of a GGUF file but its tensors' data; all three are in file order."""

    metadata: dict[str, Any]
    spans: dict[str, slice]
    """Key → where its type and value are, in bytes from the start of the file."""
    tensors: dict[str, GgufTensor]


def read_container(path: Path) -> Container:
    """Read a file's metadata and tensor table.

    Raises:
        ValueError: the file is not GGUF of version 2 or 3, ends early, or has an unknown type.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Cursor(data))
            except struct.error as error:
                raise ValueError("it ends within its header") from error
            except RecursionError as error:
                raise ValueError("it nests arrays too deeply") from error


def read_pairs(path: Path, container: Container) -> Metadata:
    """Every pair of a file's header as it stands there, byte for byte."""
    with path.open("rb") as stream:
        raw = stream.read(max((span.stop for span in container.spans.values()), default=0))
    return {key: raw[span] for key, span in container.spans.items()}


def encode_header(metadata: Mapping[str, bytes], tensors: Sequence[TensorInfo]) -> bytes:
    """The whole header of a new file, padded to where the first tensor starts."""
    parts = [_MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_encode_string(key) + value for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        parts.append(_encode_tensor(tensor, offset))
        offset += aligned(tensor.nbytes)
    raw = b"".join(parts)
    return raw + bytes(aligned(len(raw)) - len(raw))


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """``size`` rounded up to a multiple of the alignment."""
    return -(-size // alignment) * alignment


def encode(value: MetadataValue) -> bytes:
    """Type and value of one pair: int → uint32 (int32 inside an array), float → float32."""
    if isinstance(value, str):
        return struct.pack("<I", gguf.GGUFValueType.STRING) + _encode_string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", gguf.GGUFValueType.BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", gguf.GGUFValueType.UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", gguf.GGUFValueType.FLOAT32, value)
    return struct.pack("<I", gguf.GGUFValueType.ARRAY) + _encode_elements(value)


def metadata_bytes(metadata: Mapping[str, bytes]) -> int:
    """Bytes that these pairs take in the header."""
    return sum(len(_encode_string(key)) + len(value) for key, value in metadata.items())


@dataclass
class _Cursor:
    """A position in the file that moves past whatever is read."""

    data: mmap.mmap
    at: int = field(default=0)

    def take(self, code: str) -> Any:
        values = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return values[0]

    def string(self) -> str:
        length = self.take("Q")
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise ValueError("it ends within its header")
        return self.data[start : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """One metadata value; float32 becomes the shortest decimal that rounds to it."""
        value_type = gguf.GGUFValueType(kind)
        if value_type == gguf.GGUFValueType.STRING:
            return self.string()
        if value_type == gguf.GGUFValueType.ARRAY:
            return self.array()
        value = self.take(_SCALARS[value_type])
        return float(str(np.float32(value))) if value_type == gguf.GGUFValueType.FLOAT32 else value

    def array(self) -> list[Any]:
        kind, count = gguf.GGUFValueType(self.take("I")), self.take("Q")
        if kind == gguf.GGUFValueType.STRING:
            return [self.string() for _ in range(count)]
        if kind == gguf.GGUFValueType.ARRAY:
            return [self.array() for _ in range(count)]
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        if self.at + count * dtype.itemsize > len(self.data):
            raise ValueError("it ends within its header")
        # tolist copies: nothing may point into the file once it is closed
        values = np.frombuffer(self.data, dtype, count, self.at).tolist()
        self.at += count * dtype.itemsize
        return list(values)


def _parse(cursor: _Cursor) -> Container:
    if cursor.data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    cursor.at = len(_MAGIC)
    version, tensors, pairs = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    if version not in _VERSIONS:
        raise ValueError(f"its GGUF version is {version}, and only 2 and 3 are known")
    metadata, spans = {}, {}
    for _ in range(pairs):
        key, start = cursor.string(), cursor.at
        metadata[key] = cursor.value(cursor.take("I"))
        spans[key] = slice(start, cursor.at)
    table = {}
    for _ in range(tensors):
        name = cursor.string()
        sizes = [cursor.take("Q") for _ in range(cursor.take("I"))]
        table[name] = sizes, _known_type(cursor.take("I"), name), cursor.take("Q")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"it aligns its tensors to {alignment!r}, which is not a number of bytes")
    start = aligned(cursor.at, alignment)
    end = None if HEADER_ONLY in metadata else len(cursor.data)
    found = {
        name: _tensor(name, sizes, kind, start + offset, end)
        for name, (sizes, kind, offset) in table.items()
    }
    return Container(metadata, spans, found)


def _known_type(number: int, name: str) -> GgmlType:
    try:
        return GgmlType(number)
    except ValueError as error:
        raise UnknownTypeError(
            f"it has {name} in a type of the number {number}, which is of a fork of llama.cpp or "
            "newer than this version of bitquilt: give a file in another type"
        ) from error


def _tensor(
    name: str, sizes: list[int], kind: GgmlType, offset: int, end: int | None
) -> GgufTensor:
    """A table row from its sizes, fastest dimension first, checked against the file's end."""
    block, block_bytes = GGML_BLOCKS[kind]
    if not sizes or not all(sizes) or sizes[0] % block:
        raise ValueError(
            f"it has {name} with rows of {sizes[0] if sizes else 0}, of which there are "
            f"{math.prod(sizes[1:])}, in blocks of {block}"
        )
    nbytes = math.prod(sizes) // block * block_bytes
    if end is not None and offset + nbytes > end:
        raise ValueError(f"it ends within {name}")
    return GgufTensor(kind, tuple(reversed(sizes)), offset, nbytes)


def _encode_string(text: str) -> bytes:
    """Length and UTF-8 bytes."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode_elements(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    if all(isinstance(value, str) for value in values):
        kind, body = gguf.GGUFValueType.STRING, b"".join(_encode_string(str(v)) for v in values)
    elif all(isinstance(value, int) for value in values):
        kind, body = gguf.GGUFValueType.INT32, struct.pack(f"<{len(values)}i", *values)
    else:
        kind, body = gguf.GGUFValueType.FLOAT32, struct.pack(f"<{len(values)}f", *values)
    return struct.pack("<IQ", kind, len(values)) + body


def _encode_tensor(tensor: TensorInfo, offset: int) -> bytes:
    rank = len(tensor.shape)
    return (
        _encode_string(tensor.name)
        + struct.pack(f"<I{rank}Q", rank, *reversed(tensor.shape))
        + struct.pack("<IQ", tensor.type, offset)
    )
