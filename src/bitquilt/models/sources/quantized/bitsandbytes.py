"""bitsandbytes: blocks of four-bit codes of a table, or rows of eight-bit numbers.

Of ``X`` with R rows and C columns:

- Four bits (nf4, fp4): ``X.weight``, bytes [R · C / 2, 1], the first code in the upper half;
  ``X.weight.quant_map``, the 16 numbers that codes mean; ``X.weight.absmax``, the factor of each
  block of row after row; and ``X.weight.quant_state.bitsandbytes__nf4``, the shape and the length
  of a block as JSON in bytes. Factors may be codes themselves: bytes, numbers of
  ``nested_quant_map``, times ``nested_absmax`` of their block, plus ``nested_offset``.
- Eight bits: ``X.weight``, int8 [R, C], and ``X.SCB``, 127 times the factor of each row.

Source: bitsandbytes' functional.py (QuantState.from_dict, dequantize_4bit,
int8_vectorwise_dequant).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from bitquilt.models.sources import safetensors
from bitquilt.models.sources.quantized.tensor import (
    QuantizedTensor,
    StoredParts,
    stored_parts,
    unknown_way,
)
from bitquilt.models.sources.safetensors import StoredTensor

_MAPS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_STATES = tuple(f"quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4"))
_BESIDE_BYTES = ("SCB", "weight_format")

_Scanned = Mapping[str, StoredTensor]


def joined_bitsandbytes(scanned: _Scanned, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put the parts of bitsandbytes' matrices together.

    Args:
        scanned: stored tensors by name.
        settings: the config's ``quantization_config``; what counts is beside each matrix.

    Raises:
        UserError: a matrix lacks a part.
    """
    beside = tuple(f".weight.{part}" for part in (*_MAPS, *_STATES))
    found: dict[str, StoredTensor] = {}
    for name, stored in scanned.items():
        module, _, part = name.rpartition(".")
        if name.endswith(beside) or part in _BESIDE_BYTES:
            continue
        if part == "weight" and stored.dtype == "U8":
            found[name] = _four_bits(name, stored, scanned)
        elif part == "weight" and stored.dtype == "I8":
            found[name] = _eight_bits(module, stored, scanned)
        else:
            found[name] = stored
    return found


def _four_bits(name: str, stored: StoredTensor, scanned: _Scanned) -> QuantizedTensor:
    parts = {"weight": (name, stored), **stored_parts(name, (*_MAPS, *_STATES), scanned)}
    kind = next((part for part in _STATES if part in parts), None)
    state = _state(*parts[kind]) if kind else {}
    shape, block = state.get("shape"), state.get("blocksize")
    described = isinstance(shape, list) and all(type(side) is int and side > 0 for side in shape)
    described = described and type(block) is int and block > 0
    if kind is None or not described or not {"absmax", "quant_map"} <= parts.keys():
        raise unknown_way(name, stored.file, parts)
    return QuantizedTensor(
        file=stored.file,
        shape=tuple(shape or ()),
        dtype=kind.rpartition("_")[2].upper(),
        parts=parts,
        decode=partial(_decoded, state=state),
    )


def _decoded(read: Mapping[str, Tensor], *, state: Mapping[str, Any]) -> Tensor:
    shape, packed = state["shape"], read["weight"].flatten()
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: prod(shape)]
    values = read["quant_map"].to(torch.float32)[codes.long()]
    factors = _factors(read, state).repeat_interleave(state["blocksize"])[: prod(shape)]
    return (values * factors).reshape(shape)


def _state(name: str, stored: StoredTensor) -> dict[str, Any]:
    """What the JSON of a matrix says; nothing where it cannot be read."""
    try:
        state = json.loads(bytes(safetensors.read_raw(name, stored).flatten().tolist()))
    except (TypeError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _factors(read: Mapping[str, Tensor], state: Mapping[str, Any]) -> Tensor:
    """The factor of each block, float32."""
    absmax = read["absmax"]
    if "nested_absmax" not in read:
        return absmax.to(torch.float32)
    block = state.get("nested_blocksize")
    if type(block) is not int or block < 1 or "nested_quant_map" not in read:
        raise ValueError("factors in codes without what these mean")
    values = read["nested_quant_map"].to(torch.float32)[absmax.long()]
    own = read["nested_absmax"].to(torch.float32).repeat_interleave(block)[: len(values)]
    return values * own + float(state.get("nested_offset", 0.0))


def _eight_bits(module: str, stored: StoredTensor, scanned: _Scanned) -> QuantizedTensor:
    parts: StoredParts = stored_parts(module, ("weight", "SCB"), scanned)
    if "SCB" not in parts or len(stored.shape) != 2:
        raise unknown_way(module, stored.file, parts)

    def decode(read: Mapping[str, Tensor]) -> Tensor:
        return read["weight"].to(torch.float32) * (read["SCB"].to(torch.float32) / 127)[:, None]

    return QuantizedTensor(
        file=stored.file, shape=stored.shape, dtype="I8", parts=parts, decode=decode
    )
