"""What runs leave on the disk beside what they were asked for: found, and removed again.

Work directories and the cache of ``eval`` are known by their ``settings.json``, trimmed models by
their ``trimmed.json``, tokenizers that were rebuilt for models by their place in the cache, and
what a killed run was writing by its temporary name. Nothing is followed through a symbolic link,
and nothing that has another name than bitquilt gives is removed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from bitquilt.errors import UserError
from bitquilt.runtime.cache import tokenizers_path
from bitquilt.runtime.workdir import LOCK, in_use, locked

DEPTH = 2
"""How many folders below the one that is looked at a work directory may be."""
RECENT = 600.0
"""A temporary file that was written to in as many seconds may still be."""

_SINGLE = (LOCK, "settings.json", "time.json", "gradients.safetensors", "fisher.safetensors")
_FOLDERS = (
    *("moments", "hessians", "outputs", "weights"),
    *("estimated", "rounded", "polished", "sequential", "tuned"),
    *("teacher", "attribution", "search", "selection", "decided", "made"),
    *("reference", "noise", "talk"),
)
_ARTEFACT = re.compile(r"[^.].*\.(safetensors|json|jsonl)|\..*\.part|\.tmp.{6}")
_TOKENIZER = re.compile(r"\.?[0-9a-f]{32}(-\d+)?(-hf)?(\.part)?")
_TOKENIZER_FILES = re.compile(r"tokenizer(_config)?\.json")
_MENDED_FILES = re.compile(r".+\.(json|jinja|md|txt)|LICEN[CS]E.*|COPYING.*|NOTICE.*")
"""What a tokenizer has that was rebuilt from a GGUF file, and one that was mended (``-hf``)."""
_TRIMMED = "trimmed.json"
MADE_ALONG = "files made along with others"
"""The field of :data:`_TRIMMED` that lists the files of a trimmed model which `quantize` made for
others; one that somebody asked for by itself has no such field, and is no leftover."""


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """A directory or file that bitquilt made and does not need any more than its user does."""

    path: Path
    kind: str
    """What it is, in words."""
    files: tuple[Path, ...]
    """What is removed: the files that bitquilt wrote."""
    foreign: tuple[Path, ...]
    """What is in it and stays: files of another name, and links."""
    nbytes: int
    """The size of what is removed."""
    seconds: float
    """The time since a file of it other than the lock was last written to."""
    in_use: bool
    """Whether a run is working on it; it stays then."""

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "bytes": self.nbytes,
            "seconds": round(self.seconds),
            "in_use": self.in_use,
            "foreign": [str(path) for path in self.foreign],
        }


def find_leftovers(directory: Path | None, outputs: Sequence[str]) -> list[Leftover]:
    """Find what bitquilt left in a directory, largest first.

    Args:
        directory: looked at with what is a few folders below; None for the present directory and
            the user's cache.
        outputs: how the names of files end that bitquilt writes for its users.

    Raises:
        UserError: there is no such directory.
    """
    where = Path() if directory is None else directory
    if not where.is_dir():
        raise UserError(
            f"{where} is not a directory; give one that `quantize` or `search` wrote into"
        )
    found = list(_in_directory(where, outputs, DEPTH))
    if directory is None:
        cache = user_cache_path("bitquilt")
        found += _in_directory(cache, (), 1) if cache.is_dir() else []
        found += _tokenizers(tokenizers_path())
    unique = {leftover.path.resolve(): leftover for leftover in found}
    return sorted(unique.values(), key=lambda one: -one.nbytes)


def remove_leftover(leftover: Leftover) -> int:
    """Remove what bitquilt wrote there, and folders that are empty then; gives the bytes freed.

    Raises:
        UserError: a run is using it, or the system does not let it be removed.
    """
    freed = 0
    try:
        with locked(leftover.path):
            last = sorted(leftover.files, key=lambda file: file.name in (*_SINGLE, _TRIMMED))
            for file in last:  # while these are there, what remains is known as ours
                size = file.lstat().st_size
                file.unlink(missing_ok=True)
                freed += size
        if leftover.path.is_dir():
            for folder, _, _ in os.walk(leftover.path, topdown=False):
                if not any(Path(folder).iterdir()):
                    Path(folder).rmdir()
    except FileNotFoundError:  # somebody else is removing it
        pass
    except OSError as error:
        raise UserError(f"{error.filename} cannot be removed: {error.strerror}") from error
    return freed


def directory_bytes(directory: Path) -> int:
    """Count the bytes of all files below a directory."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())


def _in_directory(directory: Path, outputs: Sequence[str], depth: int) -> Iterator[Leftover]:
    """Yield work directories and half-written files in a directory, and in those below it."""
    if (kind := _kind_of_work(directory)) is not None:
        ours, foreign = _split(directory)
        yield _leftover(directory, kind, ours, foreign, busy=in_use(directory))
        return
    if (trimmed := _trimmed_along(directory)) is not None:
        kind, ours = trimmed
        foreign = [file for file in _files_of(directory) if file not in ours]
        busy = in_use(directory.with_name(f"{directory.name}.work"))
        yield _leftover(directory, kind, ours, foreign, busy=busy)
        return
    for path in _entries(directory):
        if path.is_symlink():
            continue
        if _half_written(path.name, outputs):
            inside = _files_of(path)
            kind = "half-written by a run that was killed"
            part = _leftover(path, kind, inside, [], busy=False)
            yield _leftover(path, kind, inside, [], busy=part.seconds < RECENT)
        elif depth and path.is_dir() and not path.name.startswith("."):
            yield from _in_directory(path, outputs, depth - 1)


def _tokenizers(directory: Path) -> Iterator[Leftover]:
    """Yield the tokenizers that were rebuilt from GGUF files or mended, as one."""
    if not directory.is_dir() or directory.is_symlink():
        return
    ours: list[Path] = []
    foreign: list[Path] = []
    for path in _entries(directory):
        if path.name == LOCK:  # which runs share that read them
            continue
        made = _TOKENIZER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        files = _MENDED_FILES if "-hf" in path.name else _TOKENIZER_FILES
        for file in _entries(path) if made else [path]:
            known = made and files.fullmatch(file.name) and not file.is_symlink()
            (ours if known else foreign).append(file)
    count = len({file.parent for file in ours})
    if ours:
        kind = f"tokenizers that were rebuilt for models ({count})"
        yield _leftover(directory, kind, ours, foreign, busy=in_use(directory))


def _kind_of_work(directory: Path) -> str | None:
    """Say what a work directory is for; None for any other directory."""
    try:
        settings = json.loads((directory / "settings.json").read_text(encoding="utf-8"))
        made = "bitquilt" in settings["versions"] and "checkpoint" in settings
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if made and "evaluation of" in settings:
        return f"what eval keeps about {settings['evaluation of']}"
    return f"the work directory of {settings['model']}" if made and "model" in settings else None


def _trimmed_along(directory: Path) -> tuple[str, list[Path]] | None:
    """Say what a trimmed model is, and which files it has, if `quantize` made it for others."""
    try:
        said = json.loads((directory / _TRIMMED).read_text(encoding="utf-8"))
        known = [directory / name for name in said[MADE_ALONG]]
        kind = f"the trimmed {said['trimmed from']}, which `quantize --trim` makes again"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind, [
        path
        for path in known
        if path.is_file()
        and not path.is_symlink()
        and path.resolve().is_relative_to(directory.resolve())
    ]


def _split(directory: Path) -> tuple[list[Path], list[Path]]:
    """Tell files that a work directory has from those that somebody put there."""
    ours: list[Path] = []
    foreign: list[Path] = []
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            path = Path(folder) / name
            folder_name = path.relative_to(directory).parts[0]
            known = _ARTEFACT.fullmatch(name) if folder_name in _FOLDERS else False
            if folder_name == name:
                known = name in _SINGLE or re.fullmatch(r"\..+\.part", name)
            (ours if known and not path.is_symlink() else foreign).append(path)
    return ours, foreign


def _half_written(name: str, outputs: Sequence[str]) -> bool:
    return any(re.fullmatch(rf"\..+{re.escape(end)}\.part", name) for end in outputs)


def _files_of(path: Path) -> list[Path]:
    inside = [path, *path.rglob("*")]
    return [file for file in inside if file.is_file() or file.is_symlink()]


def _leftover(
    path: Path, kind: str, ours: Sequence[Path], foreign: Sequence[Path], *, busy: bool
) -> Leftover:
    facts = [file.lstat() for file in ours]
    written = [fact.st_mtime for file, fact in zip(ours, facts, strict=True) if file.name != LOCK]
    newest = max(written, default=path.lstat().st_mtime)
    return Leftover(
        path=path,
        kind=kind,
        files=tuple(ours),
        foreign=tuple(foreign),
        nbytes=sum(fact.st_size for fact in facts),
        seconds=max(0.0, time.time() - newest),
        in_use=busy,
    )


def _entries(directory: Path) -> list[Path]:
    """List a directory; one that cannot be read has nothing of ours."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []
