"""Sizes as people write them: ``600MB``, ``1.5GiB``."""

from __future__ import annotations

import re

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
    "TB": 10**12,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", re.IGNORECASE)
_LEAST_FILE = 10_000
"""Bytes that no model file is smaller than: the room for its recipe alone takes 4096."""
_LEAST_MB = 10
"""A smaller number without a unit is more likely to be of gigabytes than of megabytes."""


def human(nbytes: float) -> str:
    """Write bytes for people, in the decimal units that disks and hubs use."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"


def is_size(text: str) -> bool:
    """Tell whether a text is a number with a unit of bytes."""
    match = _SIZE.fullmatch(text)
    return match is not None and bool(match[2])


def parse_size(text: str) -> int:
    """Read a size such as ``600MB``, ``1.5 GiB`` or ``734003200``, and return its bytes.

    Raises:
        UserError: the text is not a size.
    """
    if "," in text and all(map(is_size, text.split(","))):
        raise UserError(
            f"--size takes one size, not {text!r}; give the command once for each size: the second "
            "is quick, because it uses the work directory of the first"
        )
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else None
    if unit and not unit.endswith("B"):
        unit += "B"
    if match is None or unit not in _UNITS or float(match.group(1)) <= 0:
        raise UserError(f"--size is {text!r}, which is not a size; write it like 600MB or 1.5GiB")
    number = match.group(1)
    if not unit and float(number) < _LEAST_FILE:
        meant = f"{number}{'MB' if float(number) >= _LEAST_MB else 'GB'}"
        raise UserError(
            f"--size={number} has no unit, so it means {number} bytes, and no model is that "
            f"small; did you mean {meant}?"
        )
    return int(float(number) * _UNITS[unit])
