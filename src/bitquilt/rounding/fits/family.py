"""What every family of grids brings to nearest rounding: the fit of its scales.

Letters: R rows, C columns.
"""

from __future__ import annotations

from functools import singledispatch

from torch import Tensor

from bitquilt.grids.grid import Fields, Grid


@singledispatch
def fit_family(grid: Grid, weight: Tensor, importance: Tensor) -> Fields:
    """Scales and codes of least error Σ importance · (level − weight)², near enough.

    One implementation per family of grids, found by the type of ``grid``.

    Args:
        grid: where to.
        weight: float32 [R, C], on any device; its fields are made there.
        importance: float32 [R, C], positive, mean 1 in a row.
    """
    raise TypeError(f"no fit is registered for {type(grid).__name__}")
