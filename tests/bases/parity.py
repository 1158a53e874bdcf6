"""Transformers' logits beside those of engines: of bases, checkpoints and quantized files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import activations

from bitquilt.bases.importance import BaseModel
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.mlx_base import in_a_form_that_mlx_lm_reads
from bitquilt.bases.mlx_child import completed, with_lacking_fields
from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.gguf.container import read_container
from bitquilt.gguf.dequantize import dequantize
from tests.engines.conftest import divergence
from tests.factories import VOCABULARY

Logits = npt.NDArray[np.float32]
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY - 6, 40)
"""What the models read: more than the tiny ones' sliding windows."""
_GELU = (
    activations.GELUTanh,
    activations.GELUActivation,
    activations.NewGELUActivation,
    nn.GELU,
)


class TableGelu(nn.Module):
    """GELU as ggml has it: a table from half precision to half precision, between -10 and 10."""

    def forward(self, x: Tensor) -> Tensor:
        """Look x up."""
        found = gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, 0, found))


def transformers_logits(model: nn.Module) -> Logits:
    """Transformers' logits, float32 [L, V]."""
    with torch.inference_mode():
        read = model(torch.from_numpy(TOKENS)[None], use_cache=False)
    logits: Logits = read.logits[0].float().numpy()
    return logits


def llamacpp_logits(file: Path) -> Logits:
    """Those of a file in llama.cpp, with a cache of float32."""
    with open_llamacpp(file, exact=True) as engine:
        (logits,) = engine.logits(TOKENS[None])
    return logits


def mlx_logits(directory: Path) -> Logits:
    """Those of a Hugging Face or MLX directory in mlx-lm, computed in float32."""
    import mlx.core as mx
    from mlx_lm.utils import load_config, load_model

    def loaded(source: Path) -> Any:
        def load(given: dict[str, Any]) -> Any:
            return load_model(source, model_config=completed(load_config(source), given))

        model, _ = with_lacking_fields(str(directory), load)
        mx.eval(model.parameters())  # the source may be there for the while
        return model

    model = (
        loaded(directory)
        if "quantization" in load_config(directory)
        else in_a_form_that_mlx_lm_reads(directory, directory.with_suffix(".mlx"), loaded)
    )
    model.set_dtype(mx.float32)
    return np.array(model(mx.array(TOKENS)[None]).astype(mx.float32))[0]


def difference(truth: Logits, other: Logits) -> float:
    """The largest difference between logits; files may have more tokens than the model."""
    return float(np.abs(truth - other[:, : truth.shape[1]]).max())


def with_table_gelu(model: nn.Module) -> nn.Module | None:
    """A copy of a model with ggml's GELU; None if it has none."""
    changed = copy.deepcopy(model)
    found = [
        (module, name)
        for module in changed.modules()
        for name, child in module.named_children()
        if isinstance(child, _GELU)
    ]
    for module, name in found:
        setattr(module, name, TableGelu())
    return changed if found else None


def decoded_model(base: BaseModel, file: Path) -> nn.Module:
    """Transformers' model with a quantized file's numbers in place of its own."""
    model = copy.deepcopy(base.model)
    lent_weights(model).keep()
    decoded = decoded_by_mlx(file) if file.is_dir() else decoded_by_gguf(file)
    parameters = dict(model.named_parameters())
    for name, partner in base.partners.items():
        if partner is None:
            continue
        stack = decoded(name)
        stack = stack.reshape(-1, *stack.shape[-2:])
        for matrix, pieces in zip(stack, partner.experts, strict=True):
            for piece in pieces:
                parameter = parameters[piece.unit.parameter].data
                own = parameter.view(-1, *parameter.shape[-2:])[piece.unit.index]
                own = own.T if piece.unit.transposed else own
                columns = torch.arange(own.shape[1]) if piece.columns is None else piece.columns
                own[piece.source_rows[:, None], columns] = matrix[piece.rows]
    return model


def decoded_by_gguf(file: Path) -> Callable[[str], Tensor]:
    """What gives the matrices of a GGUF file as floats."""
    tensors = read_container(file).tensors
    return lambda name: dequantize(file, tensors[name])


def decoded_by_mlx(directory: Path) -> Callable[[str], Tensor]:
    """What gives the matrices of an MLX directory as floats, by mlx's own functions."""
    import mlx.core as mx

    parts = mx.load(str(directory / "model.safetensors"))
    quantization = json.loads((directory / "config.json").read_text("utf-8"))["quantization"]

    def decoded(name: str) -> Tensor:
        weight = parts[f"{name}.weight"]
        if f"{name}.scales" in parts:
            scales = (parts[f"{name}.scales"], parts.get(f"{name}.biases"))
            weight = mx.dequantize(weight, *scales, **quantization[name])
        return torch.from_numpy(np.array(weight.astype(mx.float32)))

    return decoded


def kl(truth: Logits, other: Logits) -> float:
    """Mean KL of other logits, in nats."""
    return divergence(truth, other[:, : truth.shape[1]])
