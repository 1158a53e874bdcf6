"""Reading a GGUF file: the inverse of :mod:`.gguf_header`, fast on vocabularies of 100k tokens."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from bitquilt.errors import UserError
from bitquilt.stitch.gguf_header import ALIGNMENT, VERSION, Metadata, TensorInfo

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
_OLDEST_VERSION = 2


@dataclass(frozen=True)
class GgufFile:
    """An opened file: metadata as it stands in the file, tensors as views of the mapped file."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    _offsets: dict[str, int]
    _data: np.ndarray

    def value(self, key: str, default: Any = None) -> Any:
        """One metadata value as a Python object; an array as a list."""
        raw = self.metadata.get(key)
        return default if raw is None else _Cursor(raw).value()

    def data(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor, uint8 [rows, row_bytes] (one row for a vector)."""
        info = self.tensors[name]
        start = self._offsets[name]
        rows = info.shape[0] if len(info.shape) == 2 else 1
        return self._data[start : start + info.nbytes].reshape(rows, -1)


def open_gguf(path: Path) -> GgufFile:
    """Map a file and read its header.

    Raises:
        UserError: it cannot be read, is no GGUF file, or is shorter than its header says.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _parse(path, mapped)
    except (OSError, ValueError, struct.error, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as GGUF: {error}; write or fetch it again"
        ) from error


def _parse(path: Path, mapped: mmap.mmap) -> GgufFile:
    cursor = _Cursor(mapped)
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    version, tensor_count, pair_count = cursor.unpack("<IQQ")
    if not _OLDEST_VERSION <= version <= VERSION:
        raise ValueError(f"its version is {version}")
    metadata = {}
    for _ in range(pair_count):
        key = cursor.string()
        start = cursor.position
        cursor.skip_value()
        metadata[key] = bytes(mapped[start : cursor.position])
    tensors, offsets = {}, {}
    for _ in range(tensor_count):
        info, offset = _tensor(cursor)
        tensors[info.name], offsets[info.name] = info, offset
    alignment = ALIGNMENT
    if "general.alignment" in metadata:
        alignment = _Cursor(metadata["general.alignment"]).value()
    start = -(-cursor.position // alignment) * alignment
    end = max((offsets[name] + tensors[name].nbytes for name in tensors), default=0)
    if len(mapped) < start + end:
        raise ValueError(f"it ends {start + end - len(mapped):,} bytes too early")
    data = np.frombuffer(mapped, dtype=np.uint8, offset=start)
    return GgufFile(path, metadata, tensors, offsets, data)


def _tensor(cursor: _Cursor) -> tuple[TensorInfo, int]:
    name = cursor.string()
    (rank,) = cursor.unpack("<I")
    shape = tuple(reversed(cursor.unpack(f"<{rank}Q")))
    kind, offset = cursor.unpack("<IQ")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    nbytes = int(np.prod(shape)) // block * block_bytes
    return TensorInfo(name, shape, GGMLQuantizationType(kind), nbytes), offset


class _Cursor:
    """A position in bytes, moving forward."""

    def __init__(self, raw: bytes | mmap.mmap) -> None:
        self._raw = raw
        self.position = 0

    def take(self, size: int) -> bytes:
        piece = self._raw[self.position : self.position + size]
        if len(piece) < size:
            raise ValueError("the header is cut off")
        self.position += size
        return piece

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def string(self) -> str:
        return self.take(self.unpack("<Q")[0]).decode()

    def value(self) -> Any:
        kind = GGUFValueType(self.unpack("<I")[0])
        if kind != GGUFValueType.ARRAY:
            return self._element(kind)
        element, count = self.unpack("<IQ")
        return [self._element(GGUFValueType(element)) for _ in range(count)]

    def _element(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        return self.unpack(_SCALARS[kind])[0]

    def skip_value(self) -> None:
        """Move past a value without building it."""
        kind = GGUFValueType(self.unpack("<I")[0])
        count = 1
        if kind == GGUFValueType.ARRAY:
            kind, count = self.unpack("<IQ")
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                self.take(self.unpack("<Q")[0])
        else:
            self.take(count * struct.calcsize(_SCALARS[GGUFValueType(kind)]))
