"""What a server can say about its model without asking the engine: what the file itself says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitquilt.engines import is_gguf, is_mlx
from bitquilt.errors import UserError

ARCHITECTURE = "general.architecture"
LONGEST_LIST = 5
"""Ollama leaves longer ones out, too."""
WHOLE = 0.95
"""A model whose bytes are of one type to this share is called by it: norms are of another."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as clients are told of it; what is not known is empty."""

    name: str
    format: str = ""
    """``gguf``, ``mlx`` or ``safetensors``."""
    metadata: Mapping[str, Any] = field(default_factory=lambda: {ARCHITECTURE: "bitquilt"})
    """What a GGUF file's header says, but its long lists; the same words for others."""
    tensors: Sequence[tuple[str, str, Sequence[int]]] = ()
    """Name, type and shape of each, rows first; of GGUF files only."""
    parameters: int = 0
    nbytes: int = 0
    """The size of the weights' files."""
    file_type: str = ""
    """What its type is called as a whole: ``Q4_K_M``."""
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When it was written."""

    @property
    def architecture(self) -> str:
        """What the model's architecture is called."""
        return str(self.metadata.get(ARCHITECTURE, "unknown"))


def served_model(name: str, reference: str) -> ServedModel:
    """Look at a model that is about to be loaded.

    Args:
        name: what clients call it.
        reference: what :func:`~bitquilt.engines.open_engine` takes. Where it cannot be read,
            nothing is known: the engine says why.
    """
    path = Path(reference)
    with suppress(UserError, OSError, ValueError):
        if is_gguf(path):
            return _of_gguf(name, path)
        return _of_directory(name, reference)
    return ServedModel(name=name)


def _of_gguf(name: str, path: Path) -> ServedModel:
    from bitquilt.gguf.file_type import file_type_name
    from bitquilt.gguf.header import read_parts

    headers = read_parts(path)
    tensors = {name: tensor for header in headers for name, tensor in header.tensors.items()}
    matrices = [tensor.type.name for tensor in tensors.values() if len(tensor.shape) > 1]
    return ServedModel(
        name=name,
        format="gguf",
        metadata={key: _shortened(value) for key, value in headers[0].metadata.items()},
        tensors=[(name, one.type.name, one.shape) for name, one in tensors.items()],
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        nbytes=sum(header.path.stat().st_size for header in headers),
        file_type=file_type_name(headers[0].metadata, matrices),
        modified=_modified([header.path for header in headers]),
    )


def _of_directory(name: str, reference: str) -> ServedModel:
    from bitquilt.gguf.file_type import MIX
    from bitquilt.models.inspection import inspect
    from bitquilt.models.sources.resolve import resolve
    from bitquilt.models.sources.safetensors import files

    path, found = resolve(reference), inspect(reference)
    weights, kind = files(path), found.architecture
    most, nbytes = max(found.types.items(), key=lambda pair: pair[1])
    return ServedModel(
        name=name,
        format="mlx" if is_mlx(path) else "safetensors",
        metadata={
            ARCHITECTURE: kind,
            f"{kind}.block_count": found.layers,
            f"{kind}.embedding_length": found.hidden_size,
        },
        parameters=found.parameters,
        nbytes=sum(file.stat().st_size for file in weights),
        file_type=most if nbytes >= WHOLE * found.bytes else MIX,
        modified=_modified(weights),
    )


def _shortened(value: Any) -> Any:
    """A value as JSON can hold it; of tokens and merges, which are megabytes, an empty list."""
    if isinstance(value, list):
        return [] if len(value) > LONGEST_LIST else [_shortened(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None  # as float32 has it
    return value


def _modified(files: Sequence[Path]) -> datetime:
    """When the last of the files was written."""
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), UTC)
