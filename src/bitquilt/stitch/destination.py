"""Where a result may go: never over something that bitquilt did not write."""

from __future__ import annotations

from pathlib import Path

from bitquilt.errors import UserError


def recipe_beside(path: Path) -> Path:
    """Where the recipe of a GGUF file is written for people; it marks the file as ours."""
    return path.with_suffix(".recipe.json")


def check_file(path: Path, source: Path | None) -> None:
    """Refuse to replace a directory, the model's own file, or one without our recipe beside it.

    Args:
        path: where a GGUF file should go.
        source: the GGUF file that the model is read from, if it is one.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory where a file should go; give a file name")
    if not path.exists():
        return
    if source is not None and path.resolve() == source.resolve():
        raise UserError(f"{path} is the model itself; give another -o, or move it")
    if not recipe_beside(path).exists():
        raise UserError(
            f"{path} is there and bitquilt did not write it; give another -o, or move it"
        )


def check_directory(path: Path, marker: str) -> None:
    """Refuse to replace a file, or a directory without ``marker``, which our results have."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file where a directory should go; give another name")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path} holds files that bitquilt did not write; give another directory, or empty it"
        )
