"""Codes beside their scales: FP8, compressed-tensors, modelopt, and stacks in MXFP4.

What a matrix ``X`` of R rows and C columns is stored as:

- FP8 (DeepSeek, Qwen, Mistral): ``X.weight`` in float8, and ``X.weight_scale_inv``, a scale for
  each block of ``weight_block_size``, or for the whole matrix.
- compressed-tensors: ``X.weight`` in float8 or int8, and ``X.weight_scale``, one for the matrix,
  for each row, for each group of columns, or for each block; or ``X.weight_packed``, int32 [R,
  C · bits / 32], the first code in the lowest bits, with an offset of half of their range,
  ``X.weight_shape``, and ``X.weight_scale``; ``X.weight_zero_point`` packed along the rows, and
  ``X.weight_g_idx``, the group of each column, may be there.
- compressed-tensors' four-bit floats: ``X.weight_packed``, bytes [R, C / 2], the first code in the
  lower half, and ``X.weight_scale`` [R, C / group]: NVFP4 in float8, to be divided by the
  matrix's ``X.weight_global_scale``; MXFP4 in exponents of 2 and 127.
- modelopt: FP8 as above; NVFP4 as above, but ``X.weight`` for the bytes, and ``X.weight_scale_2``,
  which multiplies.
- MXFP4 (gpt-oss), of a stack of E experts: ``X_blocks``, bytes [E, R, C / 32, 16], the first code
  in the lower half, and ``X_scales``, exponents of 2 and 127 [E, R, C / 32]; its shape is
  [E, C, R].

Sources: transformers' ``integrations/finegrained_fp8.py`` (Fp8Dequantize) and ``mxfp4.py``, and
compressed-tensors' ``pack_quantized``, ``nvfp4``, ``mxfp4``, ``lifecycle/forward.py`` and
``converters/modelopt_nvfp4.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.quantized.tensor import (
    FP4,
    QuantizedTensor,
    StoredParts,
    powers_of_two,
    spread,
    stored_parts,
    unknown_way,
)
from bitquilt.models.sources.safetensors import StoredTensor
from bitquilt.runtime.bit_stream import from_stream

_FLOATS = ("F8_E4M3", "F8_E5M2", "I8")
_SCALES = ("weight_scale_inv", "weight_scale")
_WHOLE = ("weight_global_scale", "weight_scale_2")
_PARTS = (
    *("weight", "weight_packed", *_SCALES, *_WHOLE),
    *("weight_zero_point", "weight_shape", "weight_g_idx"),
)
_ACTIVATIONS = (
    *("activation_scale", "input_scale", "input_global_scale", "input_zero_point"),
    *("output_scale", "k_scale", "v_scale", "q_scale"),
)
"""Last parts of names of tensors that say what activations are rounded to, which is not done."""
_BESIDE = (*_PARTS, *_ACTIVATIONS)
_BITS = (4, 8, 2)
_BLOCKS, _EXPONENTS = "_blocks", "_scales"

_Scanned = Mapping[str, StoredTensor]
_Read = Mapping[str, Tensor]


def joined_scaled(scanned: _Scanned, settings: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Put codes and the scales beside them together.

    Args:
        scanned: stored tensors by name.
        settings: the config's ``quantization_config``.

    Raises:
        UserError: a matrix is stored in a way that is not known here.
    """
    found: dict[str, StoredTensor] = {}
    for name, stored in scanned.items():
        module, _, part = name.rpartition(".")
        bytes_of_codes = stored.dtype == "U8" and f"{module}.weight_scale" in scanned
        coded = part == "weight" and (stored.dtype in _FLOATS or bytes_of_codes)
        if part == "weight_packed" or coded:
            found[f"{module}.weight"] = _matrix(module, scanned, _block(settings))
        elif name.endswith(_BLOCKS):
            found[name.removesuffix(_BLOCKS)] = _stack(name, scanned)
        elif part == "weight" or not (part in _BESIDE or name.endswith(_EXPONENTS)):
            found[name] = stored
    return found


def _matrix(module: str, scanned: _Scanned, block: tuple[int, int] | None) -> QuantizedTensor:
    parts = stored_parts(module, _PARTS, scanned)
    _, codes = parts.get("weight_packed") or parts["weight"]
    if not any(part in parts for part in _SCALES):
        raise unknown_way(module, codes.file, parts)
    if codes.dtype == "U8":
        return _four_bit_floats(parts, codes)
    if "weight_packed" not in parts:
        decode = partial(_scaled, shape=codes.shape, block=block)
        return QuantizedTensor(
            file=codes.file, shape=codes.shape, dtype=codes.dtype, parts=parts, decode=decode
        )
    if "weight_shape" not in parts:
        raise unknown_way(module, codes.file, parts)
    shape = tuple(map(int, safetensors.read_raw(*parts["weight_shape"]).tolist()))
    bits = _bits(codes.shape, shape)
    return QuantizedTensor(
        file=codes.file,
        shape=shape,
        dtype=f"INT{bits}",
        parts=parts,
        decode=partial(_unpacked, shape=shape, bits=bits),
    )


def _four_bit_floats(parts: StoredParts, codes: StoredTensor) -> QuantizedTensor:
    *rows, half = codes.shape
    shape = (*rows, 2 * half)
    exponents = parts["weight_scale"][1].dtype == "U8"

    def decode(read: _Read) -> Tensor:
        values = _fp4(read["weight_packed"] if "weight_packed" in read else read["weight"])
        weights = values * spread(_scale(read), shape[-1])
        if "weight_global_scale" in read:
            weights = weights / read["weight_global_scale"].to(torch.float32)
        if "weight_scale_2" in read:
            weights = weights * read["weight_scale_2"].to(torch.float32)
        return weights

    return QuantizedTensor(
        file=codes.file,
        shape=shape,
        dtype="MXFP4" if exponents else "NVFP4",
        parts=parts,
        decode=decode,
    )


def _stack(name: str, scanned: _Scanned) -> QuantizedTensor:
    """A stack of experts in MXFP4."""
    blocks, beside = scanned[name], name.removesuffix(_BLOCKS) + _EXPONENTS
    exponents = scanned.get(beside)
    if len(blocks.shape) != 4 or exponents is None or exponents.shape != blocks.shape[:3]:
        raise UserError(
            f"{name} in {blocks.file}, {list(blocks.shape)}, and its scales do not fit together; "
            "download the checkpoint again"
        )
    experts, rows, groups, width = blocks.shape
    return QuantizedTensor(
        file=blocks.file,
        shape=(experts, groups * width * 2, rows),
        dtype="MXFP4",
        parts={_BLOCKS: (name, blocks), _EXPONENTS: (beside, exponents)},
        decode=_experts,
    )


def _experts(read: _Read) -> Tensor:
    """Codes and exponents of a stack, float32 [E, C, R]."""
    scale = powers_of_two(read[_EXPONENTS])[..., None]
    return (_fp4(read[_BLOCKS]) * scale).flatten(-2).transpose(1, 2).contiguous()


def _fp4(codes: Tensor) -> Tensor:
    """The numbers of bytes that have two codes each, the first in the lower half."""
    return torch.tensor(FP4)[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).long()]


def _scale(read: _Read) -> Tensor:
    """The scales, float32, as many as are stored."""
    scale = next(read[part] for part in _SCALES if part in read)
    return powers_of_two(scale) if scale.dtype == torch.uint8 else scale.to(torch.float32)


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    stated = settings.get("weight_block_size")
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        stated = stated or (weights.get("block_structure") if isinstance(weights, dict) else None)
    if isinstance(stated, list) and len(stated) == 2 and all(type(n) is int for n in stated):
        rows, columns = stated
        return (rows, columns) if min(rows, columns) > 0 else None
    return None


def _scaled(read: _Read, *, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    return read["weight"].to(torch.float32) * _factors(_scale(read), shape, block)


def _factors(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int] | None) -> Tensor:
    """Scales as they multiply a matrix: a number, or [R, C]."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        scale = scale[:, None]
    sides = []
    for side, count, wide in zip(shape, scale.shape, block or (0, 0), strict=True):
        stated = wide > 0 and -(-side // wide) == count
        if not stated and side % count:
            raise ValueError(f"{count} scales for {side}")
        sides.append(torch.arange(side) // (wide if stated else side // count))
    return scale[sides[0]][:, sides[1]]


def _unpacked(read: _Read, *, shape: tuple[int, ...], bits: int) -> Tensor:
    rows, columns = shape
    scale = _scale(read)
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)
    codes = _codes(read["weight_packed"], bits)[:, :columns]
    groups = read.get("weight_g_idx")
    if groups is None or int(groups.min()) < 0:
        groups = torch.arange(columns) // -(-columns // scale.shape[1])
    if (zeros := read.get("weight_zero_point")) is not None:
        points = _codes(zeros.T, bits)[:, :rows].T
        codes = codes - points.expand(rows, -1)[:, groups.long()]
    weights: Tensor = codes * scale.expand(rows, -1)[:, groups.long()]
    return weights


def _codes(packed: Tensor, bits: int) -> Tensor:
    """Codes of int32 [R, n], float32 [R, n · 32 / bits], around 0."""
    codes = from_stream(packed.contiguous().view(torch.uint32), bits)
    return codes.to(torch.float32) - (1 << bits - 1)


def _bits(packed: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many bits a code has, by how many int32 a row takes.

    Raises:
        UserError: none fits.
    """
    for bits in _BITS:
        if len(packed) == len(shape) == 2 and packed[1] == -(-shape[1] // (32 // bits)):
            return bits
    raise UserError(
        f"codes in int32 {list(packed)} do not make a matrix {list(shape)}; download the "
        "checkpoint again"
    )
