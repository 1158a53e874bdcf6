"""A matrix that is stored as codes and scales, and what the formats have in common.

Letters: R rows, C columns, G groups along a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.models.sources import safetensors
from bitquilt.models.sources.safetensors import StoredTensor

StoredParts = Mapping[str, tuple[str, StoredTensor]]
"""Last part of a name → the name, and where the tensor is."""
FP4 = (
    *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    *(0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),  # ggml has no -0, either
)
"""The numbers of four-bit floats, E2M1."""


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(StoredTensor):
    """A matrix that is stored as codes and scales; its shape is that of the weights."""

    parts: StoredParts
    decode: Callable[[Mapping[str, Tensor]], Tensor]
    """From the parts as they are stored to the weights, float32."""

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales in the file."""
        return sum(stored.raw_bytes for _, stored in self.parts.values())

    def decoded(self) -> Tensor:
        """Dequantize the matrix: float32, [R, C] unless it is a stack.

        Raises:
            UserError: codes and scales do not fit together, or the file was changed.
        """
        read = {part: safetensors.read_raw(*where) for part, where in self.parts.items()}
        try:
            weights = self.decode(read)
        except (RuntimeError, IndexError, ValueError) as error:
            raise self._misfit() from error
        if weights.shape != self.shape:
            raise self._misfit()
        return weights

    def _misfit(self) -> UserError:
        name = next(iter(self.parts.values()))[0]
        beside = [list(at.shape) for _, at in list(self.parts.values())[1:]]
        return UserError(
            f"{name} in {self.file} and its scales, {' and '.join(map(str, beside))}, do not fit "
            "together; download the checkpoint again"
        )


def stored_parts(
    module: str, names: tuple[str, ...], scanned: Mapping[str, StoredTensor]
) -> StoredParts:
    """Gather the parts of a matrix that are there."""
    stored = {part: f"{module}.{part}" for part in names}
    return {part: (name, scanned[name]) for part, name in stored.items() if name in scanned}


def unknown_way(module: str, file: Path, parts: StoredParts) -> UserError:
    """Say that a matrix is stored in a way that is not known here."""
    return UserError(
        f"{module} in {file} is quantized in a way that bitquilt does not read (it has "
        f"{', '.join(parts)}); give the original checkpoint"
    )


def powers_of_two(exponents: Tensor) -> Tensor:
    """The numbers of E8M0 bytes, float32."""
    return (exponents.to(torch.float32) - 127).exp2()


def spread(groups: Tensor, columns: int) -> Tensor:
    """Repeat what each group has for its columns: [R, G] -> [R, C]; the last may have fewer.

    Raises:
        ValueError: there are more groups than columns, or none.
    """
    count = groups.shape[1]
    if not 0 < count <= columns:
        raise ValueError(f"{count} groups for {columns} columns")
    return groups.repeat_interleave(-(-columns // count), 1)[:, :columns]
