"""Checkpoints that are published quantized, dequantized one matrix at a time.

What a matrix ``X`` of R rows and C columns is stored as:

- FP8 (DeepSeek, Qwen, Mistral): ``X.weight`` in float8, and ``X.weight_scale_inv``, a scale for
  each block of ``weight_block_size``, or for the whole matrix.
- compressed-tensors: ``X.weight`` in float8 or int8, and ``X.weight_scale``, one for the matrix,
  for each row, for each group of columns, or for each block; or ``X.weight_packed``, int32 [R,
  C · bits / 32], the first code in the lowest bits, with an offset of half of their range,
  ``X.weight_shape``, and ``X.weight_scale``; ``X.weight_zero_point`` packed along the rows, and
  ``X.weight_g_idx``, the group of each column, may be there.
- MXFP4 (gpt-oss), of a stack of E experts: ``X_blocks``, bytes [E, R, C / 32, 16], the first code
  in the lower half, and ``X_scales``, exponents of 2 and 127 [E, R, C / 32]; its shape is
  [E, C, R].

Sources: transformers' ``integrations/finegrained_fp8.py`` (Fp8Dequantize) and ``mxfp4.py``, and
compressed-tensors' ``pack_quantized.py`` and ``lifecycle/forward.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bitquilt.errors import UserError
from bitquilt.models.canonical import DEQUANTIZED, QUANTIZED
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.safetensors import StoredTensor

DEQUANTIZED_STACKS = (*DEQUANTIZED, "mxfp4")
"""``quant_method`` of weights that are read here; the last is of stacks of experts."""
_FLOATS = ("F8_E4M3", "F8_E5M2", "I8")
_SCALES = ("weight_scale_inv", "weight_scale")
_BESIDE = (
    *(*_SCALES, "weight_zero_point", "weight_shape", "weight_g_idx", "weight_packed"),
    *("activation_scale", "input_scale", "input_zero_point", "output_scale"),
    *("k_scale", "v_scale", "q_scale"),
)
"""Last parts of names of tensors that say how others are read, or what activations are rounded to,
which is not done here."""
_BITS = (4, 8, 2)
_BLOCKS, _EXPONENTS = "_blocks", "_scales"
_MXFP4 = [
    *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    *(0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),  # ggml has no -0, either
]


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(StoredTensor):
    """A matrix that is stored as codes and scales; its shape is that of the weights."""

    parts: Mapping[str, tuple[str, StoredTensor]]
    """Last part of a name → the name, and where the tensor is."""
    block: tuple[int, int] | None
    """Rows and columns that share a scale, where the config says so."""

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in the file."""
        return sum(stored.raw_bytes for _, stored in self.parts.values())

    def decoded(self) -> torch.Tensor:
        """Dequantize the matrix: float32 [R, C].

        Raises:
            UserError: codes and scales do not fit together, or the file was changed.
        """
        read = {part: safetensors.read_raw(*where) for part, where in self.parts.items()}
        if _BLOCKS in read:
            return _experts(read[_BLOCKS], read[_EXPONENTS])
        scale = next(read[part] for part in _SCALES if part in read)
        if scale.dtype == torch.uint8:  # E8M0
            scale = _powers_of_two(scale)
        scale = scale.to(torch.float32)
        try:
            if "weight_packed" in read:
                return _unpacked(read, scale, self.shape)
            return read["weight"].to(torch.float32) * _spread(scale, self.shape, self.block)
        except (RuntimeError, IndexError, ValueError, StopIteration) as error:
            name = next(iter(self.parts.values()))[0]
            raise UserError(
                f"{name} in {self.file} and its scales, {list(scale.shape)}, do not fit together; "
                "download the checkpoint again"
            ) from error


def joined(
    scanned: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Put codes and scales together, under the name that the weight has unquantized.

    Args:
        scanned: stored tensors by name.
        config: as published; it says whether the weights are quantized.

    Raises:
        UserError: a matrix is stored in a way that is not known here.
    """
    settings = quantization_of(config)
    if settings is None:
        return dict(scanned)
    found: dict[str, StoredTensor] = {}
    for name, stored in scanned.items():
        module, _, part = name.rpartition(".")
        if part == "weight_packed" or (part == "weight" and stored.dtype in _FLOATS):
            found[f"{module}.weight"] = _joined(module, scanned, _block(settings))
        elif name.endswith(_BLOCKS):
            found[name.removesuffix(_BLOCKS)] = _stack(name, scanned)
        elif part not in _BESIDE and not name.endswith(_EXPONENTS):
            found[name] = stored
    return found


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of how its weights are quantized, or what the text half of one does."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for field in QUANTIZED:
            if part.get(field):
                return part[field] if isinstance(part[field], dict) else {}
    return None


def _joined(
    module: str, scanned: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> QuantizedTensor:
    names = {part: f"{module}.{part}" for part in ("weight", *_BESIDE[:6])}
    parts = {part: (name, scanned[name]) for part, name in names.items() if name in scanned}
    _, codes = parts.get("weight_packed") or parts["weight"]
    packed = "weight_packed" in parts
    if not any(part in parts for part in _SCALES) or (packed and "weight_shape" not in parts):
        raise UserError(
            f"{module} in {codes.file} is quantized in a way that bitquilt does not read (it has "
            f"{', '.join(parts)}); give the original checkpoint"
        )
    shape = codes.shape
    if packed:
        shape = tuple(map(int, safetensors.read_raw(*parts["weight_shape"]).tolist()))
    dtype = f"INT{_bits(codes.shape, shape)}" if packed else codes.dtype
    return QuantizedTensor(file=codes.file, shape=shape, dtype=dtype, parts=parts, block=block)


def _stack(name: str, scanned: Mapping[str, StoredTensor]) -> QuantizedTensor:
    """A stack of experts in MXFP4."""
    blocks, beside = scanned[name], name.removesuffix(_BLOCKS) + _EXPONENTS
    exponents = scanned.get(beside)
    if len(blocks.shape) != 4 or exponents is None or exponents.shape != blocks.shape[:3]:
        raise UserError(
            f"{name} in {blocks.file}, {list(blocks.shape)}, and its scales do not fit together; "
            "download the checkpoint again"
        )
    experts, rows, groups, width = blocks.shape
    shape = experts, groups * width * 2, rows
    parts = {_BLOCKS: (name, blocks), _EXPONENTS: (beside, exponents)}
    return QuantizedTensor(file=blocks.file, shape=shape, dtype="MXFP4", parts=parts, block=None)


def _experts(blocks: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Codes and exponents of a stack, float32 [E, C, R]."""
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    scale = _powers_of_two(exponents)[..., None]
    return (torch.tensor(_MXFP4)[codes] * scale).flatten(-2).transpose(1, 2).contiguous()


def _powers_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """The numbers of E8M0 bytes, float32."""
    return (exponents.to(torch.float32) - 127).exp2()


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


def _spread(
    scale: torch.Tensor, shape: tuple[int, ...], block: tuple[int, int] | None
) -> torch.Tensor:
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


def _unpacked(
    read: Mapping[str, torch.Tensor], scale: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    rows, columns = shape
    packed = read["weight_packed"]
    bits = _bits(tuple(packed.shape), shape)
    codes = _codes(packed, bits)[:, :columns]
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)
    groups = read.get("weight_g_idx")
    if groups is None or int(groups.min()) < 0:
        groups = torch.arange(columns) // -(-columns // scale.shape[1])
    if (zeros := read.get("weight_zero_point")) is not None:
        points = _codes(zeros.T.contiguous(), bits)[:, :rows].T
        codes = codes - points.expand(rows, -1)[:, groups.long()]
    weights: torch.Tensor = codes * scale.expand(rows, -1)[:, groups.long()]
    return weights


def _codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of int32 [R, n], float32 [R, n · 32 / bits], around 0."""
    shifts = torch.arange(0, 32 // bits * bits, bits, dtype=torch.int32)
    codes = packed[..., None] >> shifts & (1 << bits) - 1
    return codes.reshape(len(packed), -1).to(torch.float32) - (1 << bits - 1)


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
