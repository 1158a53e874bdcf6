"""What mlx makes of a matrix in bfloat16."""

import numpy as np
import pytest
import torch

from bitquilt.grids.affine import Affine
from bitquilt.grids.grid import Fields, Grid


def mlx_fields(grid: Grid, weight: torch.Tensor, importance: torch.Tensor) -> Fields:
    """Fields by ``mx.quantize``, which knows no importance."""
    mx = pytest.importorskip("mlx.core")
    mode = {"group_size": grid.block, "bits": 4, "mode": grid.name}
    if isinstance(grid, Affine):
        mode = {"group_size": grid.block, "bits": grid.width}
    with mx.stream(mx.cpu):
        codes, *scales = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), **mode)
        if isinstance(grid, Affine):
            scales = [scale.astype(mx.float32) for scale in scales]
        parts = [torch.from_numpy(np.array(part)) for part in (codes, *scales)]
    packed = dict(zip(("weight", "scales", "biases"), parts, strict=False))
    if isinstance(grid, Affine):
        packed |= {name: packed[name].bfloat16() for name in ("scales", "biases")}
    return grid.unpack(packed)
