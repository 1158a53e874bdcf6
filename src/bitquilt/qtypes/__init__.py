"""Types: the storage formats a matrix can be put on. Look them up here by name.

A type's module registers it when imported; this one imports them all, in the order in which types
of equal cost are listed.
"""

from __future__ import annotations

from difflib import get_close_matches

from bitquilt.errors import UserError
from bitquilt.qtypes import blocks32, floats, iq4, iquants, kquants, mlx_affine, mxfp4  # noqa: F401
from bitquilt.qtypes.qtype import QuantType, registered

__all__ = ["for_width", "get", "names"]


def get(name: str) -> QuantType:
    """The type of that name.

    Raises:
        UserError: there is none; names the nearest and lists the choices.
    """
    qtypes = registered()
    if name in qtypes:
        return qtypes[name]
    by_lower = {known.lower(): known for known in qtypes}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    raise UserError(
        f"there is no type {name!r}; did you mean {by_lower[close[0]]}? "
        f"Choose one of {', '.join(names())}"
    )


def names(target: str | None = None) -> list[str]:
    """Names of the types that a file format (``gguf``, ``mlx``; None: any) holds, by bits."""
    return [qtype.name for qtype in _by_bits() if target is None or target in qtype.targets]


def for_width(columns: int, target: str) -> list[QuantType]:
    """The types of a file format that can store rows of that length, by bits."""
    return [qtype for qtype in _by_bits() if target in qtype.targets and qtype.fits(columns)]


def _by_bits() -> list[QuantType]:
    return sorted(registered().values(), key=lambda qtype: qtype.bits)
