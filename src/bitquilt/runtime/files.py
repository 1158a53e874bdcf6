"""Files appear whole or not at all: written beside, flushed, renamed; and are read with care."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bitquilt.errors import UserError

_OF_MODELS = {".jinja", ".json", ".model", ".safetensors"}
_POINTER = b"version https://git-lfs.github.com/"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it and rename it into place.

    The temporary path may become a file or a directory. On any error, Ctrl-C included, it is
    removed and what was at ``path`` stays. An error of writing becomes one sentence; any other
    error of the body passes through as it is.

    Raises:
        UserError: disk full, no permission, read-only file system, a name too long, or a file
            that would take the place of a directory.
    """
    path = Path(os.path.abspath(path))  # "." has no name to write beside
    temporary = path.with_name(f".{path.name}.part")
    old = path.with_name(f".{path.name}.old")
    try:
        with _in_one_sentence(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if old.is_dir() and not path.exists():
                old.rename(path)  # a run was killed between its two renames
            remove(temporary)
        try:
            yield temporary
        except OSError as error:
            if not _is_of_writing(error, temporary):
                raise
            raise UserError(_sentence(error, path)) from error
        if temporary.is_file() and path.is_dir():
            raise UserError(f"{path} is a directory; name a file in it")
        with _in_one_sentence(path):
            _flush(temporary)
            _put_in_place(temporary, path, old)
    except BaseException:
        remove(temporary)
        raise


def _put_in_place(temporary: Path, path: Path, old: Path) -> None:
    """Rename ``temporary`` to ``path``; where that fails, what was there is there again."""
    remove(old)
    # a directory cannot be replaced in one step: the old one is moved aside first
    aside = path.is_dir()
    if aside:
        path.rename(old)
    try:
        temporary.replace(path)
    except BaseException:
        if aside:
            old.rename(path)
        raise
    remove(old)


@contextmanager
def _in_one_sentence(path: Path) -> Iterator[None]:
    """Say of any error of the file system that ``path`` was not written."""
    try:
        yield
    except OSError as error:
        raise UserError(_sentence(error, path)) from error


def _is_of_writing(error: OSError, temporary: Path) -> bool:
    """Whether an error comes from writing the temporary file, rather than from other work."""
    if error.filename is None:  # what write() raises names no file
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    where = Path(os.path.abspath(os.fsdecode(error.filename)))
    return where.is_relative_to(temporary)


def require_room(directory: Path, nbytes: int) -> None:
    """Make sure that ``nbytes`` can be written under ``directory``, which is made if missing.

    For the moment before long work: what it finds out now would otherwise be found out after it.

    Raises:
        UserError: the directory cannot be made or written to, or the disk is too full.
    """
    free = _free_bytes(directory)
    if free < nbytes:
        raise UserError(
            f"{directory} has {free:,} bytes free, but {nbytes:,} are needed; free space or "
            "choose another directory"
        )


def has_room(directory: Path, nbytes: int) -> bool:
    """Tell whether ``nbytes`` can be written under ``directory``, which is made if missing.

    Raises:
        UserError: the directory cannot be made or written to.
    """
    return _free_bytes(directory) >= nbytes


def _free_bytes(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return shutil.disk_usage(directory).free
    except OSError as error:
        raise UserError(_sentence(error, directory)) from error


def refuse_unwritable(directory: Path, option: str) -> None:
    """Refuse a directory that cannot be made or written to; nothing is made.

    Args:
        directory: may be missing.
        option: what names it.

    Raises:
        UserError: it says what keeps from writing.
    """
    place = nearest_there(directory)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{_sentence(error, directory)} with {option}") from error


def nearest_there(path: Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    path = Path(os.path.abspath(path))
    while not path.exists():
        path = path.parent
    return path


def refuse_file(directory: Path, option: str) -> None:
    """Refuse a file where a directory belongs.

    Args:
        directory: may be missing.
        option: what names it.

    Raises:
        UserError: a file is there.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file, not a directory; choose another with {option}")


def refuse_directory(file: Path) -> None:
    """Refuse a directory where a file belongs.

    Raises:
        UserError: a directory is there.
    """
    if file.is_dir():
        raise UserError(f"{file} is a directory where a file should go; give a file name")


def _flush(path: Path) -> None:
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # not there, or there is no such directory
            path.unlink()


def _sentence(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} was not written: the disk is full; free space or choose another directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} was not written: no write permission there; choose another directory"
    return f"{path} was not written: {error.strerror or error}; choose another directory"


def require_readable(path: Path) -> None:
    """Refuse a file that cannot be read, or a directory that cannot, or that holds such a file.

    Args:
        path: what does not exist passes. Of a directory, files that models are made of count.

    Raises:
        UserError: it names a file without permission, a link to nothing, or a pointer of Git LFS,
            which stands for a file where a repository was cloned without it.
    """
    try:
        if not path.exists():
            return
        entries = sorted(path.iterdir()) if path.is_dir() else [path]
        for file in entries:
            if file == path or file.suffix in _OF_MODELS:
                _require_file(file)
    except PermissionError as error:
        raise UserError(no_permission(error.filename)) from error


def _require_file(file: Path) -> None:
    if file.is_symlink() and not file.exists():
        raise UserError(
            f"{file} is a link to {file.readlink()}, which is not there; download it again"
        )
    if not file.is_file():
        return
    if not os.access(file, os.R_OK):
        raise UserError(no_permission(file))
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise UserError(
                f"{file} is a pointer of Git LFS, not the file itself; run `git lfs pull` in "
                f"{file.parent}"
            )


def no_permission(path: str | Path) -> str:
    """The sentence for a file that its reader has no right to."""
    return (
        f"{path} cannot be read: no permission; run `chmod u+rX {path}`, with `sudo` if it is "
        "another user's"
    )


def each_path(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    """Return several paths as they are, and one path as a sequence; text has letters, not paths."""
    return (paths,) if isinstance(paths, str | Path) else paths


def read_json(path: Path, remedy: str = "download it again") -> dict[str, Any]:
    """Read one JSON object.

    Args:
        path: the file.
        remedy: what to do where the file cannot be read; it ends the sentence.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # halves of characters come in pairs only
            json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:  # also what UTF-8 and JSON are not
        raise UserError(f"{path} cannot be read as JSON: {error}; {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object; {remedy}")
    return content


def nan_to_null(content: Any) -> Any:
    """JSON has no NaN: an interval that is not known is null."""
    if isinstance(content, dict):
        return {key: nan_to_null(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [nan_to_null(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
