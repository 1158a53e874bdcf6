"""The source: a GGUF file of whatever architecture, or its parts, read a few rows at a time.

Letters: E experts of a stack (1 for a plain matrix), R rows of each, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np

from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.header import GgufHeader, read_parts
from bitquilt.gguf.header_only import stored_bytes
from bitquilt.streaming import ggml
from bitquilt.streaming.ggml import Bytes, Float32Array

NO_WEIGHTS = (GgmlType.I8, GgmlType.I16, GgmlType.I32, GgmlType.I64, GgmlType.F64)
"""Types that llama-quantize copies."""
KEPT_TENSORS = ("position_embd.weight", "token_types.weight")
"""Tensors that llama-quantize copies."""
KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight", ".position_embd", "sam.pos_embd"),
    *("sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook"),
    *("mm.a.code_embd", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight"),
    *("time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight"),
    *("time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight"),
    *("time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    "time_mix_lerp_fused.weight",
)
"""Parts of names of tensors that llama-quantize copies: ``tensor_allows_quantization`` of its
``src/llama-quant.cpp``, with the tensors of vision and audio encoders."""
LEAST_BLOCK = 32
"""The smallest block of any type that is chosen."""


@dataclass(frozen=True)
class SourceMatrix:
    """A matrix that can be quantized, or a stack of them: experts share a type, as in a file."""

    name: str
    experts: int
    rows: int
    """Rows of each expert."""
    columns: int

    @property
    def weights(self) -> int:
        """All weights."""
        return self.experts * self.rows * self.columns

    def nbytes(self, kind: GgmlType) -> int:
        """Bytes of the matrix on a type, without alignment."""
        return self.experts * self.rows * ggml.row_bytes(kind, self.columns)


class GgufSource:
    """A model's files."""

    def __init__(self, path: Path) -> None:
        """Read the headers of a model's file, or of all parts of a split one.

        Raises:
            UserError: a file is damaged or missing, is no model, or two have the same tensor.
        """
        self.parts: Sequence[GgufHeader] = read_parts(path)
        self.name = self.parts[0].path.name
        self._part_of: dict[str, GgufHeader] = {}
        for part in self.parts:
            for name in part.tensors:
                if name in self._part_of:
                    raise UserError(
                        f"{part.path} and {self._part_of[name].path} both have {name}; download "
                        "the parts again"
                    )
                self._part_of[name] = part

    @property
    def header(self) -> GgufHeader:
        """The header of the first part, which has all metadata."""
        return self.parts[0]

    @cached_property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """All tensors of all parts."""
        return {name: part.tensors[name] for part in self.parts for name in part.tensors}

    @cached_property
    def kept(self) -> Mapping[str, str]:
        """Tensors that stay as they are → why."""
        reasons = {name: _reason(name, tensor) for name, tensor in self.tensors.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def matrices(self) -> Mapping[str, SourceMatrix]:
        """All other tensors."""
        return {
            name: SourceMatrix(name, math.prod(tensor.shape[:-2]), *tensor.shape[-2:])
            for name, tensor in self.tensors.items()
            if name not in self.kept
        }

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output matrix, too."""
        return "output.weight" not in self.tensors

    def stored(self, name: str, start: int, count: int) -> Bytes:
        """Return bytes of a tensor as they are in the file."""
        part, tensor = self._part_of[name], self.tensors[name]
        found = stored_bytes(part.path, name, tensor, start, count)
        if len(found) < count:
            raise UserError(f"{part.path} ends within {name}; download it again")
        return found

    def values(self, name: str) -> Float32Array:
        """Decode a tensor of one row, such as a norm."""
        tensor = self.tensors[name]
        raw = self.stored(name, 0, tensor.nbytes)[None]
        (values,) = ggml.dequantize_rows(tensor.type, raw, tensor.shape[-1])
        return np.asarray(values, np.float32)

    def rows(self, matrix: SourceMatrix, start: int, count: int) -> Float32Array:
        """Decode rows [count, C] of a matrix; those of a stack are counted through.

        Raises:
            UserError: ggml cannot decode its type, or a weight is NaN or infinite.
        """
        kind = self.tensors[matrix.name].type
        nbytes = ggml.row_bytes(kind, matrix.columns)
        raw = self.stored(matrix.name, start * nbytes, count * nbytes).reshape(count, nbytes)
        weight = ggml.dequantize_rows(kind, raw, matrix.columns)
        if not np.isfinite(weight).all():  # ggml would end the process
            self.refuse_numbers_of(matrix.name)
        return weight

    def refuse_numbers_of(self, name: str) -> NoReturn:
        """Raise the UserError about a tensor with weights that are not finite."""
        raise UserError(
            f"{self._part_of[name].path} has NaN or infinity in {name}; download it again"
        )


def _reason(name: str, tensor: GgufTensor) -> str:
    """Why a tensor is not quantized; empty where it is."""
    if all(size == 1 for size in tensor.shape[:-1]):
        return "it has one row"
    if not name.endswith("weight"):
        return "its name does not end with weight"
    if name in KEPT_TENSORS or any(part in name for part in KEPT_PARTS):
        return "llama.cpp keeps such tensors"
    if tensor.type in NO_WEIGHTS:
        return f"{tensor.type.name} holds no weights"
    if tensor.shape[-1] % LEAST_BLOCK:
        return f"no block divides its rows of {tensor.shape[-1]}"
    return ""
