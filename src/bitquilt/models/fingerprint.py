"""Fingerprints that notice other weights without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_ENDS = 1 << 20
_PAGE = 4096
_PAGES = 64


def checkpoint_fingerprint(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], files: list[Path]
) -> str:
    """sha256 over config, shapes, and each file's name, size and sampled bytes.

    Of a file it reads the first and last MiB and 64 pages spread evenly between them: training or
    rounding changes every tensor, so any other weights differ there.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([config, shapes], sort_keys=True, default=str).encode())
    for file in sorted(files, key=lambda f: f.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for start, length in _samples(size):
                stream.seek(start)
                digest.update(stream.read(length))
    return digest.hexdigest()


def _samples(size: int) -> list[tuple[int, int]]:
    """(offset, length) of the sampled bytes."""
    if size <= 2 * _ENDS + _PAGE * _PAGES:
        return [(0, size)]
    step = (size - 2 * _ENDS) // _PAGES
    spread = [(_ENDS + i * step, _PAGE) for i in range(_PAGES)]
    return [(0, _ENDS), *spread, (size - _ENDS, _ENDS)]
