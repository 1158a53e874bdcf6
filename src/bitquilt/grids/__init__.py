"""Grids: the storage formats a matrix can be put on. Look them up here by name.

A grid's module registers it when imported; this one imports them all, in the order in which grids
of equal cost are listed.
"""

from __future__ import annotations

from difflib import get_close_matches

from bitquilt.errors import UserError
from bitquilt.grids import affine, blocks32, floats, iquants, kquants, mxfp4  # noqa: F401
from bitquilt.grids.grid import Grid, registered

__all__ = ["for_width", "get", "names"]


def get(name: str) -> Grid:
    """The grid of that name.

    Raises:
        UserError: there is none; names the nearest and lists the choices.
    """
    grids = registered()
    if name in grids:
        return grids[name]
    by_lower = {known.lower(): known for known in grids}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
    raise UserError(
        f"there is no grid {name!r}; did you mean {by_lower[close[0]]}? "
        f"Choose one of {', '.join(names())}"
    )


def names(target: str | None = None) -> list[str]:
    """Names of the grids that a file format (``gguf``, ``mlx``; None: any) holds, by bits."""
    return [grid.name for grid in _by_bits() if target is None or target in grid.targets]


def for_width(columns: int, target: str) -> list[Grid]:
    """The grids of a file format that can store rows of that length, by bits."""
    return [grid for grid in _by_bits() if target in grid.targets and grid.fits(columns)]


def _by_bits() -> list[Grid]:
    return sorted(registered().values(), key=lambda grid: grid.bits)
