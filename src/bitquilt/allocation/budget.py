"""The size that the user asks for: bits per weight of the tensors, or bytes on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitquilt.errors import UserError

if TYPE_CHECKING:
    from bitquilt.targets.layout import Layout

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TB": 10**12,
    "TIB": 2**40,
}
_LEAST_FILE = 10_000
"""Bytes that no model file is smaller than: the room for its recipe alone takes 4096."""
_LEAST_MB = 10
"""A smaller number without a unit is more likely to be of gigabytes than of megabytes."""


@dataclass(frozen=True)
class Budget:
    """An exact limit, given one way or the other."""

    bits: float | None = None
    """Bits per weight of all tensors; neither tokenizer nor metadata count."""
    size: int | None = None
    """Bytes of everything on disk."""

    def __str__(self) -> str:
        return f"--bits={self.bits:.12g}" if self.size is None else human(self.size)

    def nbytes(self, weights: int) -> int:
        """Return the limit in bytes for a model of that many weights.

        The bytes are those of the tensors where bits are given, else of everything on disk.
        """
        if self.size is not None:
            return self.size
        assert self.bits is not None
        return int(self.bits * weights / 8)

    def capacity(self, layout: Layout) -> int:
        """Return the bytes that the matrices may take together.

        Args:
            layout: says what a file has beside its matrices.
        """
        beside = layout.norm_bytes if self.size is None else layout.fixed_bytes
        return self.nbytes(layout.weights) - beside


def parse_size(text: str) -> int:
    """Read a size such as ``600MB``, ``1.5 GiB`` or ``734003200``, and return its bytes.

    Raises:
        UserError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    unit = match.group(2).upper() if match else None
    if unit and not unit.endswith("B"):
        unit += "B"
    if match is None or unit not in _UNITS or float(match.group(1)) <= 0:
        raise UserError(f"{text!r} is not a size; write it like 600MB or 1.5GiB")
    number = match.group(1)
    if not unit and float(number) < _LEAST_FILE:
        meant = f"{number}{'MB' if float(number) >= _LEAST_MB else 'GB'}"
        raise UserError(
            f"--size={number} has no unit, so it means {number} bytes, and no model is that "
            f"small; did you mean {meant}?"
        )
    return int(float(number) * _UNITS[unit])


def label_of(bits: float | None, size: str | None, recipe: str | Path | None) -> str:
    """What file names say of a request; budgets that differ have labels that differ."""
    parts = []
    if bits is not None:
        parts.append(f"{bits:.12g}bit")
    if size is not None:
        parts.append(size.replace(" ", ""))
    if recipe is not None:
        parts.append(Path(recipe).name.removesuffix(".json"))
    return "-".join(parts)


def human(nbytes: float) -> str:
    """Write bytes for people, in the decimal units that disks and hubs use."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"
