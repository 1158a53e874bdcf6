"""Plain floats are rounded, not fitted."""

import torch

from bitquilt import qtypes
from bitquilt.rounding.fits.family import fit_family


def test_every_weight_goes_to_its_nearest_number() -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for name, dtype in (("BF16", torch.bfloat16), ("F32", torch.float32)):
        fields = fit_family(qtypes.get(name), weight, torch.ones_like(weight))
        assert torch.equal(fields["codes"], weight.to(dtype))
