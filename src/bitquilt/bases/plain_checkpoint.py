"""A checkpoint as converters read it: weights that are not quantized, under the model's own names.

Many are stored otherwise: quantized in a way that a converter does not read, with the prefixes that
training leaves before names, or beside an index of other files. Such a directory gets a copy for as
long as the converter runs. transformers is given the tensors themselves.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.models.canonical import (
    QUANTIZED,
    is_wrapper,
    quantization_method,
    untrained_name,
)
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.adapter import adapter_error, is_adapter
from bitquilt.models.sources.quantized import QuantizedTensor, joined, quantization_of
from bitquilt.models.sources.resolve import short_name
from bitquilt.models.sources.safetensors import INDEX, SINGLE, StoredTensor
from bitquilt.runtime.files import read_json, remove

SHARD_BYTES = 1 << 30
"""A file of a copy has about so many: they are in memory before it is written."""
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class PlainTensors(Mapping[str, Tensor]):
    """The tensors of a directory by the names that a model's class has; read when asked for.

    What is quantized is dequantized, to the floating-point type of the matrices that are not.
    """

    def __init__(self, directory: Path) -> None:
        """Read config and headers.

        Raises:
            UserError: there are no weights, they are an adapter's, or they are damaged.
        """
        self.directory = directory
        self.config: dict[str, Any] = read_json(directory / "config.json")
        self.files = safetensors.files(directory)
        if not self.files:
            raise UserError(f"{directory} has no safetensors files; download the model's weights")
        self._scanned = safetensors.scan(self.files)
        if is_adapter(self._scanned):
            raise adapter_error(directory)
        wrapped = is_wrapper(self.config)
        self._stored: dict[str, tuple[str, StoredTensor]] = {
            untrained_name(name, wrapped=wrapped): (name, at)
            for name, at in joined(self._scanned, self.config).items()
        }
        kinds = [at.dtype for _, at in self._stored.values() if len(at.shape) > 1]
        self.dtypes = {kind for kind in kinds if kind in _FLOATS} or {"BF16"}
        """Floating-point types of the matrices that are not quantized."""
        settings = quantization_of(self.config)
        self.method = None if settings is None else quantization_method(settings)
        """How the weights are quantized, if they are."""

    @property
    def widest(self) -> str:
        """The type that holds every number of the matrices: F16, BF16 or F32."""
        if len(self.dtypes) == 1:
            return next(iter(self.dtypes))
        return "F32"

    @property
    def renamed(self) -> bool:
        """Whether a tensor is stored under another name than the model's class has for it."""
        return any(name != own for name, (own, _) in self._stored.items())

    @property
    def indexed(self) -> bool:
        """Whether converters find the tensors where they are: in one file, or by the index."""
        index = self.directory / INDEX
        if not index.exists():
            return [file.name for file in self.files] == [SINGLE]
        places = {name: at.file.name for name, at in self._scanned.items()}
        return bool(read_json(index).get("weight_map") == places)

    def is_read(self, methods: Collection[str]) -> bool:
        """Tell whether what reads such a directory as it is, and dequantizes by methods, can."""
        return self.indexed and not self.renamed and self.method in (None, *methods)

    @property
    def plain_bytes(self) -> int:
        """Bytes of all tensors in the widest type."""
        return sum(map(self.size, self))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of those that are dequantized; others stay in their files."""
        stored = self._stored.items()
        return sum(self.size(name) for name, (_, at) in stored if isinstance(at, QuantizedTensor))

    def kind(self, name: str) -> str:
        """Tell the type that a tensor is read in: F32, BF16, …."""
        at = self._stored[name][1]
        return self.widest if isinstance(at, QuantizedTensor) else at.dtype

    def size(self, name: str) -> int:
        """Tell about how many bytes a tensor has."""
        return math.prod(self._stored[name][1].shape) * _FLOATS[self.widest].itemsize

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor; it may be a view of its file.

        Raises:
            UserError: codes and scales do not fit together, or the file was changed.
        """
        own, at = self._stored[name]
        if isinstance(at, QuantizedTensor):
            return at.decoded().to(_FLOATS[self.widest])
        return safetensors.read(own, at)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the files."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._stored)


def room_to_convert(directory: Path, methods: Collection[str]) -> int:
    """Return the bytes that a base takes on the disk, and the copy that is made for a converter.

    Args:
        directory: of a Hugging Face model.
        methods: quantization that the converter knows.

    Raises:
        UserError: the weights are damaged, or no model's.
    """
    tensors = PlainTensors(directory)
    return tensors.plain_bytes * (1 if tensors.is_read(methods) else 2)


@contextmanager
def as_converters_read(directory: Path, beside: Path, methods: Collection[str]) -> Iterator[Path]:
    """Give a directory of the same model that a converter reads: itself, or a copy for the while.

    Args:
        directory: of a Hugging Face model.
        beside: a file or directory, on a disk with room; the copy is put there.
        methods: quantization that the converter knows.

    Raises:
        UserError: the weights are damaged or no model's, or the copy cannot be written.
    """
    tensors = PlainTensors(directory)
    if tensors.is_read(methods):
        yield directory
        return

    def fill(copy: Path) -> None:
        if tensors.renamed or tensors.method not in (None, *methods):
            write_tensors(tensors, tensors.size, tensors.config, copy)
        else:
            _link(tensors, copy)

    with copied_otherwise(directory, beside, fill) as copy:
        yield copy


@contextmanager
def copied_otherwise(directory: Path, beside: Path, fill: Callable[[Path], None]) -> Iterator[Path]:
    """Give a copy of a model's directory for a while, with weights of another form.

    Args:
        directory: of a Hugging Face model.
        beside: a file or directory, on a disk with room; the copy is put there.
        fill: writes the weights into the copy, which has everything else.

    Raises:
        UserError: the copy cannot be written.
    """
    place = beside.with_name(f".{beside.name}.plain.part")
    remove(place)
    copy = place / short_name(str(directory), directory)  # converters name the model after it
    try:
        try:
            copy.mkdir(parents=True)
            _copy_small_files(directory, copy)
            fill(copy)
        except OSError as error:
            raise UserError(
                f"{directory} is not stored as converters read it, and a copy cannot be written "
                f"beside {beside} ({error.strerror}); free space, or give another -o"
            ) from error
        yield copy
    finally:
        remove(place)


def _copy_small_files(directory: Path, copy: Path) -> None:
    for file in directory.iterdir():
        if file.is_file() and file.name != INDEX and file.suffix != ".safetensors":
            shutil.copyfile(file, copy / file.name)


def _link(tensors: PlainTensors, copy: Path) -> None:
    """Name the files as converters expect it, with an index of what they have."""
    names = dict(zip(tensors.files, _file_names(len(tensors.files)), strict=True))
    for file, name in names.items():
        (copy / name).symlink_to(file.resolve())
    places = {stored: name for file, name in names.items() for stored in safetensors.scan([file])}
    _write_index(copy, places)


def write_tensors(
    tensors: Mapping[str, Tensor],
    size: Callable[[str], int],
    config: Mapping[str, Any],
    copy: Path,
) -> None:
    """Write all tensors as they are, and a config that speaks of no quantization.

    Args:
        tensors: by their names; each is read when its file is written.
        size: tells about how many bytes one has.
        config: of the model.
        copy: the directory.
    """
    parts: list[list[str]] = [[]]
    taken = 0
    for name in tensors:
        if parts[-1] and taken + size(name) > SHARD_BYTES:
            parts.append([])
            taken = 0
        parts[-1].append(name)
        taken += size(name)
    places: dict[str, str] = {}
    for file, names in zip(_file_names(len(parts)), parts, strict=True):
        content = {name: tensors[name].contiguous() for name in names}
        save_file(content, copy / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    _write_index(copy, places)
    (copy / "config.json").write_text(json.dumps(without_quantization(config)), "utf-8")


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(copy: Path, places: Mapping[str, str]) -> None:
    if set(places.values()) != {SINGLE}:
        index = {"metadata": {}, "weight_map": dict(places)}
        (copy / INDEX).write_text(json.dumps(index), "utf-8")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config, and the language model's part of it, without a word of quantization."""
    return {
        name: without_quantization(value) if name == "text_config" and value else value
        for name, value in config.items()
        if name not in QUANTIZED
    }
