"""The plain floats: nothing to fit."""

from __future__ import annotations

from torch import Tensor

from bitquilt.grids.floats import Float
from bitquilt.grids.grid import Fields
from bitquilt.rounding.fits.family import fit_family


@fit_family.register
def _float(grid: Float, weight: Tensor, importance: Tensor) -> Fields:
    """Every weight goes to its nearest number by itself, ties to even; importance cannot matter."""
    return {"codes": weight.to(grid.dtype)}
