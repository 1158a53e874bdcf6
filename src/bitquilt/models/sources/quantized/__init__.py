"""Checkpoints that are published quantized, dequantized one matrix at a time.

In: the stored tensors of a directory and its config. Out: the same, but codes, scales and whatever
else says what one matrix holds are one :class:`QuantizedTensor`, under the name that the weight has
in an unquantized checkpoint. One module for each kin of formats says how it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bitquilt.errors import UserError
from bitquilt.models.canonical import DEQUANTIZED, QUANTIZED, quantization_method
from bitquilt.models.sources.quantized import bitsandbytes, gptq, mlx, scaled
from bitquilt.models.sources.quantized.tensor import QuantizedTensor
from bitquilt.models.sources.safetensors import StoredTensor

__all__ = ["DEQUANTIZED_STACKS", "QuantizedTensor", "joined", "quantization_of"]

DEQUANTIZED_STACKS = (*DEQUANTIZED, "mxfp4")
"""``quant_method`` of weights that are read here; the last is of stacks of experts."""
_Scanned = Mapping[str, StoredTensor]
_FORMATS: dict[str, Callable[[_Scanned, Mapping[str, Any]], dict[str, StoredTensor]]] = {
    "gptq": gptq.joined_gptq,
    "awq": gptq.joined_awq,
    "bitsandbytes": bitsandbytes.joined_bitsandbytes,
    "mlx-lm": mlx.joined_mlx,
}


def joined(scanned: _Scanned, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put codes and scales together, under the name that the weight has unquantized.

    Args:
        scanned: stored tensors by name.
        config: as published; it says whether the weights are quantized.

    Raises:
        UserError: a matrix is stored in a way that is not known here, or that nothing says.
    """
    settings = quantization_of(config)
    if settings is None:
        for name, at in scanned.items():
            if at.dtype.startswith("F8"):
                raise UserError(
                    f"{at.file} has {name} in {at.dtype}, and config.json has no "
                    "quantization_config that says how it is quantized; take the config.json that "
                    "was published with these weights"
                )
        return dict(scanned)
    return _FORMATS.get(quantization_method(settings), scaled.joined_scaled)(scanned, settings)


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of how its weights are quantized, or what the text half of one does."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for field in QUANTIZED:
            if part.get(field):
                return part[field] if isinstance(part[field], dict) else {}
    return None
