"""The matrices of a base, read from its file when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitquilt.errors import UserError
from bitquilt.gguf.container import GgufTensor
from bitquilt.gguf.dequantize import dequantized
from bitquilt.gguf.ggml_type import GgmlType
from bitquilt.gguf.header import read_header
from bitquilt.gguf.header_only import stored_bytes

LEAST_COLUMNS = 32
"""The smallest block of any type: matrices of other widths cannot be quantized."""
PLAIN_DTYPES = {
    GgmlType.F32: torch.float32,
    GgmlType.F16: torch.float16,
    GgmlType.BF16: torch.bfloat16,
}
"""The types of single numbers, as torch has them."""


class BaseMatrices(Mapping[str, Tensor]):
    """The matrices of a GGUF file that could be quantized: name → [R, C], or a stack [E, R, C]."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            UserError: the file is no whole model, or has a matrix that is quantized already.
        """
        self._path = path
        self._tensors = {
            name: tensor
            for name, tensor in read_header(path).tensors.items()
            if _fits(name, tensor)
        }
        for name, tensor in self._tensors.items():
            if tensor.type not in {*PLAIN_DTYPES, GgmlType.MXFP4}:
                raise UserError(
                    f"{path} has {name} as {tensor.type.name}, and a base is not quantized: "
                    "convert the model with `convert_hf_to_gguf.py --outtype bf16`"
                )

    def __getitem__(self, name: str) -> Tensor:
        """Read a matrix.

        Raises:
            UserError: the file was changed.
        """
        tensor = self._tensors[name]
        try:
            raw = stored_bytes(self._path, name, tensor, 0, tensor.nbytes)
            if tensor.type not in PLAIN_DTYPES:  # gpt-oss is published so, and converted as it is
                return dequantized(raw, tensor)
            return torch.from_numpy(raw).view(PLAIN_DTYPES[tensor.type]).reshape(tensor.shape)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self._path} was changed while it was read; try again") from error

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the file."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count the matrices."""
        return len(self._tensors)


def _fits(name: str, tensor: GgufTensor) -> bool:
    shape = tensor.shape
    return (
        name.endswith(".weight")
        and len(shape) >= 2
        and shape[-2] > 1
        and shape[-1] % LEAST_COLUMNS == 0
    )
