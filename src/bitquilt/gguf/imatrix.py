"""llama.cpp's importance matrices, read and written in both of its forms.

An entry says what one matrix reads: the sum of the squares of each input over the tokens of a text,
and how many tokens there were. A stack of experts has a row of sums and a count for each expert.

The form of today is a GGUF file (``tools/imatrix/imatrix.cpp``): ``general.type`` is ``imatrix``,
``imatrix.datasets``, ``imatrix.chunk_count`` and ``imatrix.chunk_size`` say what was read, and
each matrix has the tensors ``<name>.in_sum2`` [E, C] and ``<name>.counts`` [E, 1], float32. The old
form, ``.dat``, has no counts::

    entries i32
    entry:  length i32 · name · calls i32 · values i32 · that many f32
    chunks i32 · length i32 · name of the text

Its values are mean squares times the calls, so that sums divided by calls are means in both.

Letters: E experts (1 for a plain matrix), C inputs.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from bitquilt.errors import UserError
from bitquilt.gguf.container import TensorInfo, encode, encode_header, read_container
from bitquilt.gguf.expected import odd_value

LEGACY_SUFFIX = ".dat"
"""What the names of files in the old form end with."""

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KIND = gguf.GGMLQuantizationType.F32


@dataclass(frozen=True)
class ImportanceEntry:
    """What the text said of one matrix's inputs."""

    sums: NDArray[np.float32]
    """Sum of squares of each input, [E, C]; [1, E · C] where an old file does not tell experts
    apart."""
    counts: NDArray[np.float32]
    """Tokens that reached each expert, [E]; calls of an old file."""


@dataclass(frozen=True, kw_only=True)
class ImportanceMatrix:
    """An importance matrix: an entry for each matrix that the text went through."""

    entries: Mapping[str, ImportanceEntry]
    """GGUF tensor name, with ``.weight``, → its entry."""
    datasets: tuple[str, ...] = ()
    """Names of the texts."""
    chunks: int = 0
    """Pieces of text that were read."""
    chunk_size: int = 0
    """Tokens in each; 0 where an old file does not say."""


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix in either form.

    Raises:
        UserError: the file cannot be read, is something else, or has numbers that are none.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        found = _read_gguf(path) if magic == b"GGUF" else _read_legacy(path.read_bytes())
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read as an importance matrix: {reason}; give the file that "
            "llama-imatrix or `bitquilt imatrix` wrote"
        ) from error
    for name, entry in found.entries.items():
        if not (np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()):
            raise UserError(
                f"{path} has NaN or infinite importance for {name}; make it again with "
                "`bitquilt imatrix`"
            )
    return found


def write_imatrix(path: Path, matrix: ImportanceMatrix, *, legacy: bool = False) -> None:
    """Write an importance matrix as GGUF, or in the old form, entries sorted by name."""
    in_order = ImportanceMatrix(
        entries=dict(sorted(matrix.entries.items())),
        datasets=matrix.datasets,
        chunks=matrix.chunks,
        chunk_size=matrix.chunk_size,
    )
    path.write_bytes(_legacy_bytes(in_order) if legacy else _gguf_bytes(in_order))


def _read_gguf(path: Path) -> ImportanceMatrix:
    container = read_container(path)
    if odd := odd_value(container.metadata):
        raise ValueError(odd)
    if not any(name.endswith(_SUMS) for name in container.tensors):
        raise ValueError(f"it is a GGUF file without {_SUMS} tensors")
    entries = {}
    for name in container.tensors:
        if not name.endswith(_SUMS):
            continue
        module = name.removesuffix(_SUMS)
        parts = []
        for part in (name, module + _COUNTS):
            tensor = container.tensors.get(part)
            if tensor is None or tensor.type != _KIND:
                raise ValueError(f"it lacks {part}" if tensor is None else f"{part} is not F32")
            count = tensor.nbytes // 4
            parts.append(np.fromfile(path, np.float32, count, offset=tensor.offset))
        sums, counts = parts
        if not counts.size or not sums.size or sums.size % counts.size:
            raise ValueError(f"{module} has {sums.size} sums and {counts.size} counts")
        entries[module] = ImportanceEntry(sums.reshape(counts.size, -1), counts)
    get = container.metadata.get
    return ImportanceMatrix(
        entries=entries,
        datasets=tuple(get("imatrix.datasets", ())),
        chunks=get("imatrix.chunk_count", 0),
        chunk_size=get("imatrix.chunk_size", 0),
    )


def _read_legacy(raw: bytes) -> ImportanceMatrix:
    at = 0

    def take(nbytes: int) -> bytes:
        nonlocal at
        if nbytes < 0 or at + nbytes > len(raw):
            raise ValueError("it ends early, or is another kind of file")
        at += nbytes
        return raw[at - nbytes : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    entries = {}
    for _ in range(number()):
        name = take(number()).decode()  # UnicodeDecodeError is a ValueError
        calls, count = number(), number()
        values = np.frombuffer(take(4 * count), np.float32).reshape(1, -1)
        if not name or not count:
            raise ValueError("it has an entry without a name or without values")
        entries[name] = ImportanceEntry(values, np.array([max(calls, 1)], np.float32))
    if not entries:
        raise ValueError("it has no entries")
    if at == len(raw):  # files of the first versions end here
        return ImportanceMatrix(entries=entries)
    chunks = number()
    datasets = (take(number()).decode(errors="replace"),) if at < len(raw) else ()
    return ImportanceMatrix(entries=entries, datasets=tuple(filter(None, datasets)), chunks=chunks)


def _gguf_bytes(matrix: ImportanceMatrix) -> bytes:
    metadata = {
        "general.type": encode("imatrix"),
        "imatrix.datasets": encode(list(matrix.datasets)),
        "imatrix.chunk_count": encode(matrix.chunks),
        "imatrix.chunk_size": encode(matrix.chunk_size),
    }
    infos, data = [], []
    for name, entry in matrix.entries.items():
        for part, values in ((_SUMS, entry.sums), (_COUNTS, entry.counts.reshape(-1, 1))):
            infos.append(TensorInfo(name + part, values.shape, _KIND, values.nbytes))
            data.append(values.astype("<f4").tobytes())
            data.append(bytes(-values.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT))
    return encode_header(metadata, infos) + b"".join(data)


def _legacy_bytes(matrix: ImportanceMatrix) -> bytes:
    """As ``save_imatrix_legacy`` writes: experts that no token reached have importance 1."""
    parts = [struct.pack("<i", len(matrix.entries))]
    for name, entry in matrix.entries.items():
        calls = max(1, -(-int(entry.counts.max()) // max(1, matrix.chunk_size)))
        counts = entry.counts[:, None]
        means = np.where(counts > 0, entry.sums / np.maximum(counts, 1), 1.0)
        raw = name.encode()
        parts.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, means.size))
        parts.append((means * calls).astype("<f4").tobytes())
    text = (matrix.datasets[-1] if matrix.datasets else "").encode()
    return b"".join([*parts, struct.pack("<ii", matrix.chunks, len(text)), text])
