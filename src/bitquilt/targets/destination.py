"""Where a result may go: never over something that bitquilt did not write."""

from __future__ import annotations

from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.gguf.container import read_container
from bitquilt.gguf.file_type import RECIPE
from bitquilt.runtime.files import refuse_directory

RECIPE_KEY = RECIPE
"""The metadata of every GGUF file that bitquilt writes has it."""


def check_file(path: Path, source: Path | None) -> None:
    """Refuse to replace a directory, the model's own file, or one without our recipe in it.

    Args:
        path: where a GGUF file should go.
        source: the GGUF file that the model is read from, if it is one.
    """
    refuse_directory(path)
    if not path.exists():
        return
    if source is not None and path.resolve() == source.resolve():
        raise UserError(f"{path} is the model itself; give another -o, or move it")
    if not _has_recipe(path):
        raise UserError(
            f"{path} exists, and bitquilt did not write it; give another -o, or move it"
        )


def _has_recipe(path: Path) -> bool:
    try:
        metadata = read_container(path).metadata
    except (ValueError, OSError):
        return False
    return RECIPE_KEY in metadata


def check_directory(path: Path, marker: str) -> None:
    """Refuse to replace a file, or a directory without ``marker``, which our results have."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file where a directory should go; give another name")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path} holds files that bitquilt did not write; give another directory, or empty it"
        )
