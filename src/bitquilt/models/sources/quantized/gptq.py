"""GPTQ and AWQ: matrices that are stored transposed, in codes of a few bits.

Of ``X`` with R rows, C columns, and G groups of columns, in codes of ``bits``:

    X.qweight   int32   GPTQ [C · bits / 32, R]; AWQ [C, R / 8]
    X.qzeros    int32   [G, R · bits / 32]      the code that means 0
    X.scales    float16 [G, R]
    X.g_idx     int32   [C]                     the group of each column; AWQ has none

A weight is scale · (code - zero). GPTQ's codes are one little-endian stream of bits along the
packed side; its first format, which most checkpoints have, stores zeros minus one. AWQ packs eight
codes of 4 bits into a word, in the order 0, 2, 4, 6, 1, 3, 5, 7.

Sources: ModelCloud/GPTQModel, nn_modules/qlinear (pack_original, dequantize_weight) and
utils/model.py (convert_gptq_v1_to_v2_format); casper-hansen/AutoAWQ, awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.models.sources.quantized.tensor import (
    QuantizedTensor,
    StoredParts,
    stored_parts,
    unknown_way,
)
from bitquilt.models.sources.safetensors import StoredTensor
from bitquilt.runtime.bit_stream import from_stream

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_GPTQ_BITS = (2, 3, 4, 8)
_AWQ_BITS = 4
_WORD = 32
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the codes of eight neighbours are: four bits each, counted from the lowest."""

_Scanned = Mapping[str, StoredTensor]


def joined_gptq(scanned: _Scanned, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put the parts of GPTQ's matrices together.

    Args:
        scanned: stored tensors by name.
        settings: the config's ``quantization_config``.

    Raises:
        UserError: the parts are packed for one kernel, or by a number of bits that is not known.
    """
    stated = str(settings.get("checkpoint_format") or "gptq")
    if stated not in ("gptq", "gptq_v2"):
        raise _unread("GPTQ", f"checkpoint_format {stated}", "gptq and gptq_v2")
    return _joined(scanned, partial(_gptq, minus_one=stated == "gptq"))


def joined_awq(scanned: _Scanned, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put the parts of AWQ's matrices together.

    Args:
        scanned: stored tensors by name.
        settings: the config's ``quantization_config``.

    Raises:
        UserError: they are not packed as the version that is called gemm does.
    """
    stated = str(settings.get("version") or "gemm").lower()
    if stated != "gemm":
        raise _unread("AWQ", f"version {stated}", "gemm")
    return _joined(scanned, _awq)


def _unread(method: str, stated: str, known: str) -> UserError:
    return UserError(
        f"config.json says that {method} packed the weights as {stated}, and bitquilt reads "
        f"{known} only; give the original checkpoint"
    )


def _joined(
    scanned: _Scanned, matrix: Callable[[StoredParts], QuantizedTensor | None]
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, stored in scanned.items():
        module, _, part = name.rpartition(".")
        if part not in _PARTS:
            found[name] = stored
        elif part == "qweight":
            parts = stored_parts(module, _PARTS, scanned)
            whole = {"qweight", "qzeros", "scales"} <= parts.keys()
            weight = matrix(parts) if whole else None
            if weight is None:
                raise unknown_way(module, stored.file, parts)
            found[f"{module}.weight"] = weight
    return found


def _gptq(parts: StoredParts, *, minus_one: bool) -> QuantizedTensor | None:
    words, zeros, scales = (parts[part][1].shape for part in _PARTS[:3])
    if not len(words) == len(zeros) == len(scales) == 2 or words[1] != scales[1]:
        return None
    rows = words[1]
    bits = next((b for b in _GPTQ_BITS if rows and zeros[1] == -(-rows * b // _WORD)), None)
    if bits is None:
        return None
    columns = parts["g_idx"][1].shape[0] if "g_idx" in parts else words[0] * _WORD // bits

    def decode(read: Mapping[str, Tensor]) -> Tensor:
        codes = _stream(read["qweight"].T, bits)[:, :columns]  # [R, C]
        zero = _stream(read["qzeros"], bits)[:, :rows].T + int(minus_one)  # [R, G]
        scale = read["scales"].T.to(torch.float32)
        group = read.get("g_idx", torch.arange(columns) // -(-columns // scale.shape[1])).long()
        return (codes - zero[:, group]) * scale[:, group]

    return QuantizedTensor(
        file=parts["qweight"][1].file,
        shape=(rows, columns),
        dtype=f"INT{bits}",
        parts=parts,
        decode=decode,
    )


def _stream(words: Tensor, bits: int) -> Tensor:
    """Codes of int32 words along their rows, float32."""
    return from_stream(words.contiguous().view(torch.uint32), bits).to(torch.float32)


def _awq(parts: StoredParts) -> QuantizedTensor | None:
    words, scales = (parts[part][1].shape for part in ("qweight", "scales"))
    if not len(words) == len(scales) == 2 or scales[1] != words[1] * _WORD // _AWQ_BITS:
        return None
    columns, rows = words[0], scales[1]

    def decode(read: Mapping[str, Tensor]) -> Tensor:
        groups = read["scales"].shape[0]
        if groups == 0 or columns % groups:
            raise ValueError(f"{groups} groups for {columns} columns")
        # [C, R] -> [G, C / G, R], so that what a group has counts for all of its columns
        codes = _awq_codes(read["qweight"]).unflatten(0, (groups, -1))
        zero, scale = _awq_codes(read["qzeros"]), read["scales"].to(torch.float32)
        weights: Tensor = (codes - zero[:, None]) * scale[:, None]
        return weights.flatten(0, 1).T.contiguous()

    return QuantizedTensor(
        file=parts["qweight"][1].file,
        shape=(rows, columns),
        dtype=f"INT{_AWQ_BITS}",
        parts=parts,
        decode=decode,
    )


def _awq_codes(words: Tensor) -> Tensor:
    """Codes of int32 [n, R / 8], float32 [n, R]."""
    shifts = torch.tensor(_AWQ_PLACES, dtype=torch.int32) * _AWQ_BITS
    codes = words[..., None] >> shifts & (1 << _AWQ_BITS) - 1
    return codes.flatten(1).to(torch.float32)
