"""Tokenizers in the user's cache, which stay there for as long as a run may read them."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from platformdirs import user_cache_path

from bitquilt.runtime.workdir import LOCK

if sys.platform != "win32":  # where nobody can remove a file that is open
    import fcntl

_reading: dict[Path, IO[str]] = {}
"""Directory → its lock, which this process shares with other runs until it ends."""


def tokenizers_path() -> Path:
    """Where tokenizers are kept that were rebuilt for models."""
    return user_cache_path("bitquilt") / "tokenizers"


def tokenizers_to_read() -> Path:
    """The same for a run that reads them: `clean` leaves them alone until this process ends."""
    path = tokenizers_path()
    if sys.platform != "win32" and path not in _reading:
        with suppress(OSError):  # a cache that cannot be written cannot be cleaned either
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / LOCK).open("a")
            fcntl.flock(lock, fcntl.LOCK_SH)
            _reading[path] = lock
    return path
