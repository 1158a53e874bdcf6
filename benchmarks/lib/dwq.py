"""A model as mlx-lm's DWQ leaves it: plain rounding, then scales and biases learned from KL.

DWQ is run in float32, and its products on decoded weights: without a GPU, mlx's products of
quantized weights and of bfloat16 take ten to fifty times as long for the same numbers.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import torch
from mlx_lm import load
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.utils import quantize_model
from torch import Tensor

from bitquilt.models.checkpoint import EMBEDDING
from bitquilt.qtypes.qtype import QuantType

Quantized = nn.QuantizedLinear | nn.QuantizedEmbedding
BATCH, VALIDATION = 4, 32
"""Windows; DWQ's own defaults, as is all that is not given here. Of fewer than 128
windows a quarter validates."""
RATES = (1e-6, 2e-5)
"""DWQ's own default, which is for two million tokens, and a good one for 262,144."""


def rounded(
    original: Path, qtype: QuantType, embedding: QuantType, tokens: Tensor, rate: float
) -> dict[str, Tensor]:
    """Return module path → float32 [R, C] for every matrix.

    Args:
        original: an MLX directory of the unquantized model.
        qtype: of the matrices of the blocks.
        embedding: of the embedding.
        tokens: int64 [N, L] to learn from; the first windows validate.
        rate: Adam's, one of :data:`RATES`.
    """
    with mx.stream(mx.cpu), redirect_stdout(sys.stderr), _decoded_products():
        teacher, _, config = load(str(original), return_config=True)
        student = copy.deepcopy(teacher)

        def kind(path: str, module: nn.Module) -> bool | dict[str, int]:
            own = embedding if path == EMBEDDING else qtype
            bits, group = (int(n) for n in own.name.replace("bit-g", " ").split())
            return hasattr(module, "to_quantized") and {"bits": bits, "group_size": group}

        quantize_model(student, config, 64, 4, quant_predicate=kind)
        windows = [(window, 0) for window in tokens.tolist()]
        apart = min(VALIDATION, len(windows) // 4)
        dwq_quantize(
            student,
            lambda batch, index, split: teacher(batch),
            optimizers.Adam(learning_rate=rate, bias_correction=True),
            windows[apart:],
            windows[:apart],
            BATCH,
            tokens.shape[1] + 1,
            seed=123,
            dtype=mx.float32,
        )
        return {
            path: _stored(module)
            for path, module in student.named_modules()
            if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        }


@contextmanager
def _decoded_products() -> Iterator[None]:
    """Let mlx multiply by decoded weights, which differentiate as the quantized ones do."""
    kept = nn.QuantizedLinear.__call__, nn.QuantizedEmbedding.as_linear

    def product(module: Quantized, x: mx.array) -> mx.array:
        assert "bias" not in module
        return x @ _weights(module).T

    nn.QuantizedLinear.__call__ = nn.QuantizedEmbedding.as_linear = product
    try:
        yield
    finally:
        nn.QuantizedLinear.__call__, nn.QuantizedEmbedding.as_linear = kept


def _weights(module: Quantized) -> mx.array:
    parts = (module.weight, module.scales, module.biases, module.group_size, module.bits)
    return mx.dequantize(*parts)


def _stored(module: Quantized) -> Tensor:
    """Decode what a file would hold: bfloat16 scales and biases."""
    for name in ("scales", "biases"):
        setattr(module, name, getattr(module, name).astype(mx.bfloat16).astype(mx.float32))
    return torch.from_numpy(np.array(_weights(module)))
