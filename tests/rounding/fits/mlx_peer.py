"""What mlx makes of a matrix in bfloat16."""

import numpy as np
import pytest
import torch

from bitquilt.qtypes.mlx_affine import Affine
from bitquilt.qtypes.qtype import QuantType, Unpacked


def mlx_fields(qtype: QuantType, weight: torch.Tensor, importance: torch.Tensor) -> Unpacked:
    """Fields by ``mx.quantize``, which knows no importance."""
    mx = pytest.importorskip("mlx.core")
    bits = 8 if qtype.name == "mxfp8" else 4
    mode = {"group_size": qtype.block, "bits": bits, "mode": qtype.name}
    if isinstance(qtype, Affine):
        mode = {"group_size": qtype.block, "bits": qtype.width}
    with mx.stream(mx.cpu):
        codes, *scales = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), **mode)
        if isinstance(qtype, Affine):
            scales = [scale.astype(mx.float32) for scale in scales]
        parts = [torch.from_numpy(np.array(part)) for part in (codes, *scales)]
    packed = dict(zip(("weight", "scales", "biases"), parts, strict=False))
    if isinstance(qtype, Affine):
        packed |= {name: packed[name].bfloat16() for name in ("scales", "biases")}
    return qtype.unpack(packed)
