"""The bytes of a GGUF header, read in one pass.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian)::

    magic "GGUF" · version u32 · tensors u64 · metadata pairs u64
    pair:    key string · type u32 · value            array: type u32 · count u64 · values
    tensor:  name string · dimensions u32 · sizes u64 … · type u32 · offset u64
    padding to general.alignment, then the tensors' data; string: length u64 · utf-8 bytes

gguf-py's reader makes several numpy arrays of every token and merge: seconds for a vocabulary of
128k, against a fraction of one here.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

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


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table."""

    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    """As numpy has it: rows first."""
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


def parse(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Metadata and tensor table of a file, both in file order.

    Raises:
        ValueError: the file is not GGUF of version 2 or 3, ends early, or has an unknown type.
    """
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Cursor(data))
            except struct.error as error:
                raise ValueError("it ends within its header") from error


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


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    if cursor.data[: len(_MAGIC)] != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    cursor.at = len(_MAGIC)
    version, tensors, pairs = cursor.take("I"), cursor.take("Q"), cursor.take("Q")
    if version not in _VERSIONS:
        raise ValueError(f"it has GGUF version {version}, and 2 and 3 are known")
    metadata = {cursor.string(): cursor.value(cursor.take("I")) for _ in range(pairs)}
    table = {}
    for _ in range(tensors):
        name = cursor.string()
        sizes = [cursor.take("Q") for _ in range(cursor.take("I"))]
        table[name] = sizes, gguf.GGMLQuantizationType(cursor.take("I")), cursor.take("Q")
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    return metadata, {
        name: _tensor(name, sizes, kind, start + offset, len(cursor.data))
        for name, (sizes, kind, offset) in table.items()
    }


def _tensor(
    name: str, sizes: list[int], kind: gguf.GGMLQuantizationType, offset: int, end: int
) -> GgufTensor:
    """A table row from its sizes, fastest dimension first, checked against the file's end."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    nbytes = int(np.prod(sizes, dtype=np.int64)) // block * block_bytes
    if offset + nbytes > end:
        raise ValueError(f"it ends within {name}")
    return GgufTensor(kind, tuple(reversed(sizes)), offset, nbytes)
