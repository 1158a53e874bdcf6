"""Names that are nearly right: what was meant, for the sentence that refuses them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from bitquilt.errors import UserError
from bitquilt.runtime.files import require_readable

OTHER_WORDS = {"gpu": "cuda", "nvidia": "cuda", "ggml": "gguf", "rtn": "nearest"}
"""What people call a thing that has another name here, and nothing like it in letters."""


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
    if (meant := OTHER_WORDS.get(_plain(name))) in alike:
        return [alike[meant]]
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
    if path.is_symlink():
        return f": it is a link to {path.readlink()}, which is not there; mend the link"
    # a suffix says what a file is: that alone makes no two names alike
    there: dict[str, list[str]] = {}
    for entry in path.parent.iterdir():
        if not entry.name.startswith(".") and entry.name != path.name:
            there.setdefault(_without_suffix(entry.name), []).append(entry.name)
    for stem in nearest(_without_suffix(path.name), there):
        (near,) = nearest(path.name, there[stem]) or there[stem][:1]
        return f"; did you mean {path.parent / near}?"
    return "; check the path"


def require_there(path: str | Path) -> None:
    """Refuse a path that does not exist, or may not be read.

    Raises:
        UserError: it does not exist; a name that resembles it is in the sentence. Or it may not be
            read.
    """
    require_readable(Path(path))
    if not Path(path).exists():
        raise UserError(f"{path} does not exist{suggestion(Path(path))}")


def _without_suffix(name: str) -> str:
    """Leave out what ends a file's name, not what follows the dot of a number."""
    return re.sub(r"(?<=.)\.[a-z]{2,11}$", "", name, flags=re.IGNORECASE)


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
