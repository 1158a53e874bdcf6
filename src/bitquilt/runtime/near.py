"""Names that are nearly right: what was meant, for the sentence that refuses them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Return the known names that resemble one, the nearest first; case, ``-`` and ``_`` are alike.

    Args:
        name: what was typed.
        known: what it may be.
        count: at most this many are returned.
    """
    alike: dict[str, str] = {}
    for each in known:
        alike.setdefault(_plain(each), each)
    found = difflib.get_close_matches(_plain(name), alike, n=count)
    if found and found[0] == _plain(name):
        found = found[:1]
    return [alike[one] for one in found]


def did_you_mean(name: str, known: Iterable[str], count: int = 1) -> str:
    """Return ``; did you mean …?`` for the end of a sentence; empty where nothing resembles it."""
    near = nearest(name, known, count)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def suggestion(path: Path) -> str:
    """Say which entry of the directory resembles a path that does not exist."""
    if not path.parent.is_dir():
        return f", nor does {path.parent}; check the path"
    there = (entry.name for entry in path.parent.iterdir())
    near = nearest(path.name, (name for name in there if not name.startswith(".")))
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
