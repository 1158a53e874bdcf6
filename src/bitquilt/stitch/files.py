"""Writing beside and renaming: a file is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bitquilt.errors import UserError


@contextmanager
def writing_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an error.

    Raises:
        UserError: ``path`` is a directory, its folder is missing or read-only, or the disk is full.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory where a file should go; give a file name")
    beside = path.with_name(f".{path.name}.partial")
    try:
        with _told_as_user_error(path), open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _told_as_user_error(path):
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def writing_directory(path: Path, *, marker: str) -> Iterator[Path]:
    """An empty directory that takes the place of ``path`` when the block ends without an error.

    An existing ``path`` is replaced only if it is empty or holds ``marker``, a file that tells an
    earlier result of ours from somebody's folder.

    Raises:
        UserError: ``path`` is a file or a folder of something else, or cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file where a directory should go; give another name")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(
            f"{path} holds files that bitquilt did not write; give another directory, or empty it"
        )
    beside = path.with_name(f".{path.name}.partial")
    try:
        with _told_as_user_error(path):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            yield beside
            _sync_directory(beside)
            _swap_directories(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    for path in [*sorted(directory.rglob("*")), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap_directories(new: Path, path: Path) -> None:
    """Put ``new`` at ``path``; rename cannot replace a directory that is not empty."""
    if not path.exists():
        os.replace(new, path)
        return
    old = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old)


@contextmanager
def _told_as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot write {path}: {reason}; free the space or choose another place"
        ) from error
