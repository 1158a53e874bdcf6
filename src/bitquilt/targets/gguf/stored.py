"""The matrices of a GGUF file, of whatever architecture and in however many parts."""

from __future__ import annotations

from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import torch

from bitquilt.errors import UserError
from bitquilt.gguf.header import read_header, read_parts
from bitquilt.models.architectures import GGUF_ARCHITECTURES
from bitquilt.models.gguf_config import architecture_in, config_of
from bitquilt.qtypes.qtype import Packed
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


def packed_in_gguf(path: Path, stored: StoredMatrix) -> Packed:
    """Return a matrix as it is packed; see :meth:`Target.packed`.

    Raises:
        UserError: the file is of several parts, or of an architecture that bitquilt has no tables
            of.
    """
    header = read_header(path)
    tensor = header.tensors[f"{stored.name}.weight"]
    packed = np.fromfile(header.path, np.uint8, tensor.nbytes, offset=tensor.offset)
    rows = torch.from_numpy(packed).view(stored.rows, -1)
    order = architecture_in(header).gguf_rows(f"{stored.module}.weight", config_of(header))
    return {"data": rows if order is None else rows[order.argsort()]}
