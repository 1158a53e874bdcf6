"""The headers of safetensors files, read without the libraries that read the tensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitquilt.errors import UserError


def safetensors_entries(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of all headers in a directory: eight bytes of length, then JSON.

    Raises:
        UserError: a file is damaged, or ends before its tensors do.
    """
    for path in sorted(directory.glob("*.safetensors")):
        yield from entries_of_file(path)


def entries_of_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of the header of one file.

    Raises:
        UserError: as :func:`safetensors_entries`.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            entries = json.loads(file.read(length))
        # mlx writes null for metadata that it was not given
        ends = (at["data_offsets"][1] for at in entries.values() if at and "data_offsets" in at)
        if 8 + length + max(ends, default=0) > path.stat().st_size:
            raise ValueError("it ends within its tensors")
    except (OSError, struct.error, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); it is truncated or damaged: download it again"
        ) from error
    yield from entries.items()
