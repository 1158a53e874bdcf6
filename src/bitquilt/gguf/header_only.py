"""Files of which only the header is on the disk: the numbers come from what gives them.

Such a file is truncated for everybody else; its header has the key
:data:`~bitquilt.gguf.container.HEADER_ONLY`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitquilt.gguf.container import GgufTensor

StoredBytes = npt.NDArray[np.uint8]
GivesNumbers = Callable[[str], StoredBytes]
"""The name of a tensor → its data as stored, uint8 [bytes]."""

_givers: dict[Path, GivesNumbers] = {}


def give_numbers(path: Path, giver: GivesNumbers) -> None:
    """Let the numbers of a file that is only a header be read, until :func:`take_back`."""
    _givers[path] = giver


def take_back(path: Path) -> None:
    """Let the numbers of a file be read no more."""
    _givers.pop(path, None)


def is_given(path: Path) -> bool:
    """Tell whether a file is only a header whose numbers can be read."""
    return path in _givers


def stored_bytes(path: Path, name: str, tensor: GgufTensor, start: int, count: int) -> StoredBytes:
    """Read bytes of a tensor as they are stored; fewer where the file ends.

    Args:
        path: the file, or a header whose numbers are given.
        name: of the tensor.
        tensor: where it is in the file.
        start: the first byte of the tensor that is wanted.
        count: how many are.

    Raises:
        OSError: the file cannot be read.
    """
    giver = _givers.get(path)
    if giver is not None:
        return giver(name)[start : start + count]
    return np.fromfile(path, np.uint8, count, offset=tensor.offset + start)
