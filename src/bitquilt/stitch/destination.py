"""Where a result may go: never over something that bitquilt did not write."""

from __future__ import annotations

from pathlib import Path

from bitquilt.errors import UserError


def check_file(path: Path) -> None:
    """Refuse to put a file where a directory is."""
    if path.is_dir():
        raise UserError(f"{path} is a directory where a file should go; give a file name")


def check_directory(path: Path, marker: str) -> None:
    """Refuse to replace a file, or a directory without ``marker``, which our results have."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file where a directory should go; give another name")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path} holds files that bitquilt did not write; give another directory, or empty it"
        )
