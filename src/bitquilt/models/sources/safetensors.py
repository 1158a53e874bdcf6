"""Tensors of a Hugging Face directory: one safetensors file or many, read one at a time.

Format: https://huggingface.co/docs/safetensors, sharded by ``model.safetensors.index.json``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bitquilt.errors import UserError
from bitquilt.models.sources.adapter import whole_weights
from bitquilt.models.sources.resolve import saving
from bitquilt.models.sources.tensors import all_finite
from bitquilt.runtime.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_CODES = {"F64": 8, "I64": 8, "I32": 4, "U32": 4, "I16": 2}
"""Types that are no weights, of more than a byte."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the file has it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """``F32``, ``BF16``, ``F16``, or another safetensors name."""

    @property
    def nbytes(self) -> int:
        """Bytes in the file.

        Raises:
            UserError: the dtype is not a floating-point one that bitquilt reads.
        """
        if self.dtype not in _BYTES:
            raise UserError(
                f"{self.file} stores weights as {self.dtype}, and bitquilt reads F32, BF16 and "
                "F16; give the original checkpoint"
            )
        return self.raw_bytes

    @property
    def raw_bytes(self) -> int:
        """Bytes in the file, whatever they are."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, _CODES.get(self.dtype, 1))


_LONGEST_NAME = 255
"""Bytes of a file's name; systems raise an error about a longer one."""


def files(directory: Path) -> list[Path]:
    """The directory's safetensors files, in the index's order; empty where it has no weights.

    Raises:
        UserError: the index names a file that is missing or elsewhere, or the weights are pickled.
    """
    if (directory / SINGLE).exists():  # an index beside it is of another time
        found = [directory / SINGLE]
    elif (directory / INDEX).exists():
        weight_map = read_json(directory / INDEX).get("weight_map", {})
        if not (isinstance(weight_map, dict) and all(map(_is_name, weight_map.values()))):
            raise UserError(
                f"{directory / INDEX} does not say in weight_map which file has each tensor; "
                "download it again"
            )
        found = [directory / name for name in dict.fromkeys(weight_map.values())]
    else:
        found = whole_weights(sorted(directory.glob("*.safetensors")))
    for file in found:
        inside = file.is_relative_to(directory) and ".." not in file.relative_to(directory).parts
        if not (inside and file.exists()):
            raise UserError(f"{INDEX} names {file.name}, which is not in {directory}; download it")
    if not found and any(directory.glob("pytorch_model*.bin")):
        raise UserError(
            f"{directory} has weights only as pytorch_model.bin; if you trust what is pickled "
            f"there, save them as safetensors with {saving(directory, directory)}"
        )
    return found


def _is_name(file: object) -> bool:
    """Tell whether a file of an index can have that name."""
    if not (isinstance(file, str) and file.isprintable() and file not in ("", ".")):
        return False
    return len(file.encode()) <= _LONGEST_NAME


def scan(paths: list[Path]) -> dict[str, StoredTensor]:
    """Read the headers: stored tensor name → where it is, in file order.

    Raises:
        UserError: a file is truncated or unreadable.
    """
    found: dict[str, StoredTensor] = {}
    for path in paths:
        with _open(path) as handle:
            for name in handle.offset_keys():
                view = handle.get_slice(name)
                found[name] = StoredTensor(path, tuple(view.get_shape()), view.get_dtype())
    return found


def metadata(path: Path) -> dict[str, str]:
    """What a file's header says besides its tensors.

    Raises:
        UserError: the file is truncated or unreadable.
    """
    with _open(path) as handle:
        return handle.metadata() or {}


def read(name: str, stored: StoredTensor) -> torch.Tensor:
    """One tensor; of 16-bit floats it may be a view of the file.

    Raises:
        UserError: the file cannot be read any more.
    """
    tensor = read_raw(name, stored)
    # clone: a float32 tensor is used as it is, and would be a view of the mapped file
    return tensor if tensor.dtype != torch.float32 else tensor.clone()


def read_raw(name: str, stored: StoredTensor) -> torch.Tensor:
    """One tensor as it is stored; it may be a view of the file.

    Raises:
        UserError: the file cannot be read any more.
    """
    with _open(stored.file) as handle:
        try:
            tensor: torch.Tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{name} cannot be read from {stored.file} ({error}); the file was changed after "
                "it was opened: run the command again"
            ) from error
    return tensor


def read_rows(name: str, stored: StoredTensor, rows: list[int]) -> torch.Tensor:
    """Some rows of a matrix as float32, [len(rows), C]."""
    with _open(stored.file) as handle:
        view = handle.get_slice(name)
        return torch.cat([view[row : row + 1].to(torch.float32) for row in rows])


def broken_tensor_in(path: Path) -> str | None:
    """Name the first tensor of a file with a NaN or infinite number; None where there is none.

    Codes are whole numbers and are passed over; the exponents of MXFP4 and MXFP8 scales are bytes,
    of which 255 is NaN (OCP Microscaling Formats 1.0, 5.4.1).

    Raises:
        UserError: the file is truncated or unreadable.
    """
    with _open(path) as handle:
        for name in handle.offset_keys():
            kind = handle.get_slice(name).get_dtype()
            exponents = kind == "U8" and name.endswith(".scales")
            if exponents and (handle.get_tensor(name) == 255).any():
                return str(name)
            if kind in _BYTES and not all_finite(handle.get_tensor(name)):
                return str(name)
    return None


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); it is truncated or damaged: download it again"
        ) from error
