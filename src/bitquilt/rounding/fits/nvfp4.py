"""The fit of NVFP4: which eight-bit float each group of 16 takes.

Letters: R rows, C columns, N = C / 16 groups along a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.qtypes.mxfp4 import MAGNITUDES
from bitquilt.qtypes.nvfp4 import NVFP4_GROUP, SCALE_CODES, BlockScaled
from bitquilt.qtypes.qtype import Unpacked
from bitquilt.rounding.fits.family import fit_family
from bitquilt.rounding.fits.groups import dot, fit_by_rows, inverse
from bitquilt.rounding.fits.mxfp4 import MXFP4_TABLE

TRIED = tuple(range(-3, 7))
"""Places from the least scale that clips nothing; six up, the largest weight is a 4, not a 6."""


@fit_family.register
def _nvfp4(qtype: BlockScaled, weight: Tensor, importance: Tensor) -> Unpacked:
    """Per group the scale of least error; mx.quantize's and ggml's are among those tried."""
    scales = qtype.scale(torch.arange(SCALE_CODES, device=weight.device))

    def fit(groups: Tensor, shares: Tensor) -> Unpacked:
        largest = groups.abs().amax(-1, keepdim=True) / MAGNITUDES[-1]
        clipless = torch.searchsorted(scales, largest)
        best, least = clipless.clamp(max=SCALE_CODES - 1), torch.full_like(largest, torch.inf)
        for place in TRIED:
            code = (clipless + place).clamp(0, SCALE_CODES - 1)
            error = _error(groups, shares, scales[code])
            best = torch.where(error < least, code, best)
            least = torch.minimum(error, least)
        codes = MXFP4_TABLE.codes(groups * inverse(scales[best]))
        return {"codes": codes.flatten(1), "scale_codes": best.to(torch.uint8).flatten(1)}

    return fit_by_rows(weight, importance, NVFP4_GROUP, fit)


def _error(groups: Tensor, importance: Tensor, scale: Tensor) -> Tensor:
    """Weighted squared error of each group under its scale, [R, N, 1]."""
    gap = groups - MXFP4_TABLE.levels(groups * inverse(scale)).mul_(scale)
    return dot(gap.square_(), importance)
