"""The matrices of an MLX directory, in however many files."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from bitquilt.runtime.files import read_json
from bitquilt.targets.base import StoredMatrix
from bitquilt.targets.mlx.headers import safetensors_entries
from bitquilt.targets.mlx.layout import LANGUAGE_MODEL, is_of_vision, qtype_name

WORD = 32
"""Bits of the numbers that codes are packed into."""


def stored_in_mlx(directory: Path) -> list[StoredMatrix]:
    """Return the matrices in the order of the files; see :meth:`Target.stored`."""
    quantization = read_json(directory / "config.json").get("quantization", {})
    parts = _parts(directory)
    found = []
    for name, entry in parts.items():
        module, _, part = name.rpartition(".")
        if part != "weight" or len(entry["shape"]) < 2:
            continue
        *rows, columns = entry["shape"]
        qtype = str(entry["dtype"])
        if f"{module}.scales" in parts:
            stated = quantization.get(module, quantization)
            qtype, columns = qtype_name(stated), columns * WORD // stated["bits"]
        beside = (f"{module}.{kind}" for kind in ("weight", "scales", "biases"))
        found.append(
            StoredMatrix(
                name=module.removeprefix(LANGUAGE_MODEL),
                module=module.removeprefix(LANGUAGE_MODEL),
                qtype=qtype,
                rows=prod(rows),
                columns=columns,
                nbytes=sum(_nbytes(parts[each]) for each in beside if each in parts),
            )
        )
    return found


def weights_in_mlx(directory: Path) -> int:
    """Count the weights of a directory's language model; see :meth:`Target.count_weights`."""
    parts = _parts(directory)
    matrices = sum(one.rows * one.columns for one in stored_in_mlx(directory))
    others = (entry["shape"] for name, entry in parts.items() if not _of_matrix(name, parts))
    return matrices + sum(map(prod, others))


def _of_matrix(name: str, parts: dict[str, dict[str, Any]]) -> bool:
    """Tell whether a tensor is a matrix, or a part of a packed one."""
    module, _, part = name.rpartition(".")
    if f"{module}.scales" in parts:
        return part in ("weight", "scales", "biases")
    return part == "weight" and len(parts[name]["shape"]) > 1


def _parts(directory: Path) -> dict[str, dict[str, Any]]:
    """The entries of all tensors but those of what sees."""
    return {
        name: entry
        for name, entry in safetensors_entries(directory)
        if name != "__metadata__" and not is_of_vision(name)
    }


def _nbytes(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    return int(end - begin)
