"""The size that the user asks for: bits per weight or bytes, of the whole file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bitquilt.errors import UserError

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


@dataclass(frozen=True)
class Budget:
    """An exact limit for the file, given one way or the other."""

    bits: float | None = None
    """Bits per weight over all weights of the file's tensors, everything in the file counted."""
    size: int | None = None
    """Bytes of the file."""

    def nbytes(self, weights: int) -> int:
        """Return the limit in bytes for a model of that many weights."""
        if self.size is not None:
            return self.size
        assert self.bits is not None
        return int(self.bits * weights / 8)


def parse_size(text: str) -> int:
    """Read a size such as ``600MB``, ``1.5 GiB`` or ``734003200``, and return its bytes.

    Raises:
        UserError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", text, re.IGNORECASE)
    unit = match.group(2).upper() if match else None
    if match and unit in {"K", "M", "G", "KI", "MI", "GI"}:
        unit += "B"
    if match is None or unit not in _UNITS or float(match.group(1)) <= 0:
        raise UserError(f"{text!r} is not a size; write it like 600MB or 1.5GiB")
    return int(float(match.group(1)) * _UNITS[unit])


def human(nbytes: float) -> str:
    """Write bytes for people, in the decimal units that disks and hubs use."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"
