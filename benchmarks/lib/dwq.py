"""A model as mlx-lm's DWQ leaves it: plain rounding, then scales and biases learned from KL."""

from __future__ import annotations

import copy
import sys
from contextlib import redirect_stdout
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

BATCH, VALIDATION = 4, 32
"""Windows; DWQ's own defaults, as is all that is not given here."""


def rounded(
    original: Path, qtype: QuantType, embedding: QuantType, tokens: Tensor, rate: float = 1e-6
) -> dict[str, Tensor]:
    """Return module path → float32 [R, C] for every matrix.

    Args:
        original: an MLX directory of the unquantized model.
        qtype: of the matrices of the blocks.
        embedding: of the embedding.
        tokens: int64 [N, L] to learn from; the first windows validate.
        rate: Adam's; 1e-6 is DWQ's own default, for two million tokens.
    """
    with mx.stream(mx.cpu), redirect_stdout(sys.stderr):
        teacher, _, config = load(str(original), return_config=True)
        student = copy.deepcopy(teacher)

        def kind(path: str, module: nn.Module) -> bool | dict[str, int]:
            own = embedding if path == EMBEDDING else qtype
            bits, group = (int(n) for n in own.name.replace("bit-g", " ").split())
            return hasattr(module, "to_quantized") and {"bits": bits, "group_size": group}

        quantize_model(student, config, 64, 4, quant_predicate=kind)
        windows = [(window, 0) for window in tokens.tolist()]
        dwq_quantize(
            student,
            lambda batch, index, split: teacher(batch),
            optimizers.Adam(learning_rate=rate, bias_correction=True),
            windows[VALIDATION:],
            windows[:VALIDATION],
            BATCH,
            tokens.shape[1] + 1,
            seed=123,
        )
        return {
            path: _decoded(module)
            for path, module in student.named_modules()
            if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        }


def _decoded(module: nn.QuantizedLinear | nn.QuantizedEmbedding) -> Tensor:
    parts = (module.weight, module.scales, module.biases, module.group_size, module.bits)
    return torch.from_numpy(np.array(mx.dequantize(*parts, dtype=mx.float32)))
