"""The matrices of a GGUF file, of whatever architecture and in however many parts."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.gguf.header import read_parts
from bitquilt.models.architectures import GGUF_ARCHITECTURES
from bitquilt.targets.base import StoredMatrix


def stored_in_gguf(path: Path) -> list[StoredMatrix]:
    """Return the matrices in the order of the file; see :meth:`Target.stored`."""
    headers = read_parts(path)
    family = GGUF_ARCHITECTURES.get(headers[0].architecture)
    found = []
    for header in headers:
        for tensor_name, tensor in header.tensors.items():
            if len(tensor.shape) < 2 or not tensor_name.endswith(".weight"):
                continue
            name = module = tensor_name.removesuffix(".weight")
            if family is not None:
                with suppress(UserError):
                    module = family.hf_name(name)
            found.append(
                StoredMatrix(
                    name=name,
                    module=module,
                    qtype=tensor.type.name,
                    rows=prod(tensor.shape[:-1]),
                    columns=tensor.shape[-1],
                    nbytes=tensor.nbytes,
                )
            )
    return found
