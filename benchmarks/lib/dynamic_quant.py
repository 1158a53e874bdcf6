"""The mix that mlx-lm's dynamic_quant makes, from our calibration text."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from torch import Tensor

LOW, HIGH = (4, 64), (5, 64)
"""The defaults of dynamic_quant: bits and group."""


def allocation(original: Path, tokens: Tensor, target: float) -> dict[str, str]:
    """Return module path → type.

    Args:
        original: an MLX directory of the unquantized model.
        tokens: int64 [N, L] to estimate sensitivities on.
        target: bits per weight.
    """
    with mx.stream(mx.cpu):
        model, _ = load(str(original))
        data = mx.array(tokens.numpy())
        # Windows have one length, so the mean is that of batches; logits of four windows of a
        # large vocabulary take two gigabytes and more, many times.
        found = dict(estimate_sensitivities(model, data, *LOW, *HIGH, batch_size=1))
        threshold = estimate_threshold(model, found, target, *LOW, *HIGH)
    low, high = (f"{bits}bit-g{group}" for bits, group in (LOW, HIGH))
    return {module: high if value > threshold else low for module, value in found.items()}
