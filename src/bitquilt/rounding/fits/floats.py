"""The fit of plain floats, which have no scales."""

from __future__ import annotations

from torch import Tensor

from bitquilt.qtypes.floats import Float
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family


@fit_family.register
def _float(qtype: Float, weight: Tensor, importance: Tensor) -> Unpacked:
    """Round every weight to its nearest number, ties to even; importance cannot matter."""
    return {"codes": weight.to(qtype.dtype)}
