"""The licence of a model: the files that state it, and its name in the front matter of a card."""

from __future__ import annotations

import re
from pathlib import Path

LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
"""Files that whoever passes a model on has to pass on with it."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)


def licence(directory: Path) -> str | None:
    """The ``license`` field as the hub writes it, e.g. ``apache-2.0``; None if nothing says."""
    path = directory / "README.md"
    matter = _FRONT_MATTER.match(path.read_text("utf-8")) if path.exists() else None
    found = re.search(r"^license:\s*(\S+)\s*$", matter[1], re.MULTILINE) if matter else None
    return found[1] if found else None
