"""Directories that mlx-lm or bitquilt quantized: codes in a stream of bits, and their scales.

Of ``X`` with R rows and C columns, in groups of ``group_size``, by the config's ``quantization``:

    X.weight   uint32 [R, C · bits / 32]
    X.scales   affine: bfloat16 or float16; mxfp4, mxfp8: E8M0 bytes; nvfp4: E4M3 bytes
    X.biases   affine only: a weight is scale · code + bias

Source: ml-explore/mlx, mlx/backend/cpu/quantized.cpp and mlx/fast.cpp (Quantize).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bitquilt.models.sources.quantized.tensor import (
    FP4,
    QuantizedTensor,
    powers_of_two,
    spread,
    stored_parts,
    unknown_way,
)
from bitquilt.models.sources.safetensors import StoredTensor
from bitquilt.runtime.bit_stream import from_stream

_PARTS = ("weight", "scales", "biases")
_FLOATS = {"mxfp4": 4, "nvfp4": 4, "mxfp8": 8}
"""Modes of floats → their bits."""
_AFFINE = (2, 3, 4, 5, 6, 8)

_Scanned = Mapping[str, StoredTensor]


def joined_mlx(scanned: _Scanned, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put the parts of mlx-lm's matrices together.

    Args:
        scanned: stored tensors by name.
        settings: the config's ``quantization``; modules may have an entry of their own.

    Raises:
        UserError: a matrix is stored in a mode or a number of bits that is not known.
    """
    found: dict[str, StoredTensor] = {}
    for name, stored in scanned.items():
        module, _, part = name.rpartition(".")
        if f"{module}.scales" not in scanned or part not in (*_PARTS, "global_scale"):
            found[name] = stored
        elif part == "weight":
            own = settings.get(module)
            found[name] = _matrix(module, scanned, own if isinstance(own, dict) else settings)
    return found


def _matrix(module: str, scanned: _Scanned, stated: Mapping[str, Any]) -> QuantizedTensor:
    parts = stored_parts(module, (*_PARTS, "global_scale"), scanned)
    _, codes = parts["weight"]
    mode, bits = str(stated.get("mode", "affine")), stated.get("bits")
    known = isinstance(bits, int) and bits == _FLOATS.get(mode, bits)
    if mode == "affine":
        known = bits in _AFFINE and "biases" in parts
    known = known and "global_scale" not in parts and mode in ("affine", *_FLOATS)
    if not isinstance(bits, int) or not known or len(codes.shape) != 2 or codes.dtype != "U32":
        raise unknown_way(f"{module} (mode {mode}, {bits} bits)", codes.file, parts)
    shape = codes.shape[0], codes.shape[1] * 32 // bits

    def decode(read: Mapping[str, Tensor]) -> Tensor:
        stream = from_stream(read["weight"].contiguous(), bits)
        if mode == "affine":
            scale, bias = (spread(read[part].float(), shape[1]) for part in ("scales", "biases"))
            return stream.to(torch.float32) * scale + bias
        if mode == "nvfp4":
            scale = read["scales"].view(torch.float8_e4m3fn).to(torch.float32)
        else:
            scale = powers_of_two(read["scales"])
        return _floats(stream, bits) * spread(scale, shape[1])

    name = f"{bits}bit-g{stated.get('group_size')}" if mode == "affine" else mode
    return QuantizedTensor(file=codes.file, shape=shape, dtype=name, parts=parts, decode=decode)


def _floats(codes: Tensor, bits: int) -> Tensor:
    """The numbers of E2M1 or E4M3 codes, float32."""
    if bits == 8:
        return codes.view(torch.float8_e4m3fn).to(torch.float32)
    return torch.tensor(FP4)[codes.long()]
