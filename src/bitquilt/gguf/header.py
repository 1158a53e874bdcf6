"""The header of a model in a GGUF file, or a refusal of files that hold something else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.errors import UserError
from bitquilt.gguf import SUFFIX
from bitquilt.gguf.container import (
    HEADER_ONLY,
    Container,
    GgufTensor,
    UnknownTypeError,
    read_container,
)
from bitquilt.gguf.expected import odd_value
from bitquilt.gguf.header_only import is_given

_SPLIT = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufHeader:
    """Everything of a GGUF file but its weights."""

    path: Path
    container: Container

    @property
    def metadata(self) -> dict[str, Any]:
        """Key → value, in file order."""
        return self.container.metadata

    @property
    def tensors(self) -> dict[str, GgufTensor]:
        """GGUF name → where the tensor is, in file order."""
        return self.container.tensors

    @property
    def architecture(self) -> str:
        """The value of ``general.architecture``; empty where the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A value under the architecture's name, e.g. ``block_count`` for llama.block_count."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def required(self, key: str, default: Any = None) -> Any:
        """As :meth:`get`.

        Raises:
            UserError: the file does not say, and there is no default.
        """
        value = self.get(key, default)
        if value is None:
            raise UserError(
                f"{self.path} lacks the metadata {self.architecture}.{key}; it is damaged or was "
                "written by a very old converter: download a newer file"
            )
        return value

    def uniform(self, key: str, default: Any = None) -> int:
        """An integer that may be stored once per layer, where all layers agree.

        Raises:
            UserError: the layers differ, or the file does not say and there is no default.
        """
        value = self.required(key, default)
        stated = value if isinstance(value, list) else [value]
        if not all(stated):
            raise UserError(
                f"{self.path} has {self.architecture}.{key} = 0, which no such model has; it is "
                "damaged: download it again"
            )
        if len(set(stated)) != 1:
            raise UserError(
                f"{self.path} has {self.architecture}.{key} differing between layers, which "
                "bitquilt does not support; quantize another model"
            )
        return int(stated[0])


def read_header(path: Path) -> GgufHeader:
    """Read the header of a model file, of whatever architecture.

    Raises:
        UserError: the file is damaged, truncated, one part of several, or no model.
    """
    header = _read(path)
    _refuse_parts(header)
    _refuse_other_kinds(header)
    return header


def read_parts(path: Path) -> list[GgufHeader]:
    """Read the headers of all files of a model: one, or the parts of a split one in their order.

    Args:
        path: the model's file, or any of its parts.

    Raises:
        UserError: a part is damaged or missing, or the file is no model.
    """
    header = _read(path)
    places = part_paths(path)
    headers = [_read(place) for place in places] if len(places) > 1 else [header]
    if _SPLIT.search(path.name) is None and header.metadata.get("split.count", 1) > 1:
        raise UserError(
            f"{path} is one part of a split model, and its name does not say which; name it as "
            "llama.cpp does, like model-00001-of-00003.gguf"
        )
    _refuse_other_kinds(headers[0])
    return headers


def part_paths(path: Path) -> list[Path]:
    """Return all files of a model: one, or the parts of a split one in their order.

    Args:
        path: the model's file, or any of its parts, whose name says so.

    Raises:
        UserError: a part is missing.
    """
    split = _SPLIT.search(path.name)
    if split is None:
        return [path]
    count = int(split["count"])
    places = [path.with_name(part_name(path.name, n, count)) for n in range(count)]
    if missing := [place for place in places if not place.is_file()]:
        raise UserError(
            f"{path} is one of {count} parts of a model, and {missing[0].name} is missing; "
            "put all parts into one directory"
        )
    return places


def require_whole_gguf(path: Path) -> None:
    """Refuse a file that is damaged or cut; types without a name here pass, for engines know more.

    Raises:
        UserError: it is damaged or truncated.
    """
    try:
        _read(path)
    except UserError as error:
        if not isinstance(error.__cause__, UnknownTypeError):
            raise


def part_name(name: str, index: int, count: int) -> str:
    """Name part ``index``, counted from 0, of a model in ``count`` parts, as llama.cpp does.

    Args:
        name: of the whole model, or of one of its parts.
        index: of the part.
        count: how many there are; the name of the only one is that of the model.
    """
    stem = _SPLIT.sub("", name).removesuffix(SUFFIX)
    return f"{stem}{SUFFIX}" if count == 1 else f"{stem}-{index + 1:05}-of-{count:05}{SUFFIX}"


def _read(path: Path) -> GgufHeader:
    try:
        container = read_container(path)
    except UnknownTypeError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as GGUF: {error}; it is truncated or damaged: download it again"
        ) from error
    if HEADER_ONLY in container.metadata and not is_given(path):
        raise UserError(
            f"{path} is a header without a model's numbers, left by a run that was stopped; delete "
            f"it, and give the model that it is of: {container.metadata[HEADER_ONLY]}"
        )
    if odd := odd_value(container.metadata):
        raise UserError(f"{path} cannot be read as GGUF: {odd}; it is damaged: download it again")
    return GgufHeader(path, container)


def _refuse_parts(header: GgufHeader) -> None:
    parts = header.metadata.get("split.count", 1)
    if parts > 1 or _SPLIT.search(header.path.name):
        raise UserError(
            f"{header.path} is one part of a split GGUF model; merge the parts first with "
            f"`llama-gguf-split --merge {header.path} merged.gguf`"
        )


def _refuse_other_kinds(header: GgufHeader) -> None:
    path, kind = header.path, header.metadata.get("general.type", "model")
    if kind == "imatrix" or any(name.endswith(".in_sum2") for name in header.tensors):
        raise UserError(f"{path} is an importance matrix, not a model; give the model's GGUF file")
    if kind == "adapter" or "adapter.type" in header.metadata:
        raise UserError(
            f"{path} is a LoRA adapter, not a model; merge it into its base model first"
        )
