"""One matrix on one type as others round it, decoded: ggml, plain GPTQ on K-quants, mlx."""

from __future__ import annotations

import libgguf
import torch
from torch import Tensor

from bitquilt.qtypes.ggml import SUPER_BLOCK
from bitquilt.qtypes.qtype import QuantType
from bitquilt.runtime.threads import in_threads


def ggml(qtype: QuantType, weight: Tensor, importance: Tensor | None) -> Tensor:
    """Round as llama-quantize does, with or without an importance matrix."""
    kind = libgguf.GGMLQuantizationType[qtype.name]
    if importance is None and libgguf.quantize_requires_imatrix(kind):
        importance = torch.ones(weight.shape[1])
    return qtype.dequantize({"data": ggml_bytes(kind, weight, importance)})


def ggml_bytes(
    kind: libgguf.GGMLQuantizationType, weight: Tensor, importance: Tensor | None
) -> Tensor:
    """Return blocks as ggml writes them into a file; rows go through in threads."""
    matrix = None if importance is None else importance.numpy()
    _build_tables(kind)

    def some(rows: Tensor) -> Tensor:
        return torch.from_numpy(libgguf.quantize_rows(rows.numpy(), kind, imatrix=matrix))

    return torch.cat(in_threads(some, weight.split(64)))


def _build_tables(kind: libgguf.GGMLQuantizationType) -> None:
    """Have ggml build the tables of an i-quant: it crashes if two threads come first together."""
    columns = libgguf.GGML_QUANT_SIZES[kind][0]
    libgguf.quantize_rows(torch.zeros(1, columns).numpy(), kind)


def plain_gptq(qtype: QuantType, weight: Tensor, hessian: Tensor) -> Tensor:
    """Round to a K-quant as the GPTQ + GGUF toolkit does, in short but faithful in these points:

    columns in their own order; one damping of a hundredth; a super-block's scales are fitted when
    it is reached, to the weights as corrected so far, without importance, and by the largest
    weight for Q3_K and Q6_K.
    """
    weight = weight.clone()
    damped = hessian.double() + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).float()
    rounded = torch.empty_like(weight)
    for start in range(0, weight.shape[1], SUPER_BLOCK):
        block = slice(start, start + SUPER_BLOCK)
        steps, offsets = _scales(qtype, weight[:, block])
        errors = torch.empty_like(weight[:, block])
        for i in range(SUPER_BLOCK):
            j, step, offset = start + i, steps[:, i], offsets[:, i]
            inverse = torch.where(step == 0, 0.0, 1 / step)
            code = ((weight[:, j] - offset) * inverse).round().clamp(qtype.low, qtype.high)
            rounded[:, j] = code * step + offset
            errors[:, i] = (weight[:, j] - rounded[:, j]) / upper[j, j]
            weight[:, j : block.stop] -= errors[:, i : i + 1] * upper[j, j : block.stop]
        weight[:, block.stop :] -= errors @ upper[block, block.stop :]
    return rounded


def _scales(qtype: QuantType, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return steps and offsets of one super-block of each row, one for each column, [R, 256]."""
    if qtype.name in ("Q3_K", "Q6_K"):
        # the largest weight of 16 on the end of the codes, that of 256 on the end of the scales
        ends = weight.unflatten(1, (16, 16)).abs().amax(2) / -qtype.low
        top = {"Q3_K": 31, "Q6_K": 127}[qtype.name]
        d = (ends.amax(1, keepdim=True) / top).half().float()
        scales = (ends / d.clamp_min(1e-12)).round().clamp(0, top)
        return (scales * d).repeat_interleave(16, 1), torch.zeros_like(weight)
    kind = libgguf.GGMLQuantizationType[qtype.name]
    packed = {"data": torch.from_numpy(libgguf.quantize_rows(weight.contiguous().numpy(), kind))}
    levels = qtype.levels(qtype.unpack(packed))
    spread = SUPER_BLOCK // levels.steps.shape[1]
    return levels.steps.repeat_interleave(spread, 1), levels.offsets.repeat_interleave(spread, 1)


def mlx(qtype: QuantType, weight: Tensor) -> Tensor:
    """Round as ``mlx_lm.convert -q`` does."""
    import mlx.core as mx
    import numpy as np

    bits, group = (int(n) for n in qtype.name.replace("bit-g", " ").split())
    with mx.stream(mx.cpu):
        parts = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), group, bits)
        return torch.from_numpy(np.array(mx.dequantize(*parts, group, bits, dtype=mx.float32)))


def mlx_gptq(qtype: QuantType, weight: Tensor, hessian: Tensor) -> Tensor:
    """Run mlx-lm's gptq on one linear layer whose Hessian is given."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    from mlx_lm.quant.gptq import gptq_quantize

    bits, group = (int(n) for n in qtype.name.replace("bit-g", " ").split())
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = mx.array(weight.numpy())
    # inputs with exactly this second moment
    inputs = mx.array(np.ascontiguousarray(_root(hessian).numpy()))

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def __call__(self, x: mx.array) -> mx.array:
            return self.layer(x)

    with mx.stream(mx.cpu):
        model, _ = gptq_quantize(One(), inputs, bits, group, bits, group, len(inputs))
        made = model.layer
        back = mx.dequantize(made.weight, made.scales, made.biases, group, bits)
        return torch.from_numpy(np.array(back.astype(mx.float32)))


def _root(hessian: Tensor) -> Tensor:
    """Return X [C, C] with Xᵀ X = H."""
    values, vectors = torch.linalg.eigh(hessian.double())
    return (vectors * values.clamp_min(0).sqrt()).T.float()
