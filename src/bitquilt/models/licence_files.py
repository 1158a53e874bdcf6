"""Where the texts of a model's licence are: beside its weights, or in the package it came in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

NOTICE = "NOTICE"
TERMS = re.compile(
    r"(LICEN[CS]E|COPYING|(.+[-_])?TERMS|NOTICE|USE_POLICY)([-_][\w-]+)?(\.(txt|md|html|pdf))?",
    re.IGNORECASE,
)
"""Names of files that say on what terms a model is passed on."""
_ONLY_BESIDE = ("notice", "use_policy")
_SOFTWARE = ("pyproject.toml", "setup.py", "Cargo.toml", "package.json", "CMakeLists.txt")
"""A licence beside one of these is that of a program."""


def terms_files(directories: Iterable[Path], named: Iterable[object]) -> dict[str, Path]:
    """Find the files that state terms: name → place, the first of a name.

    Args:
        directories: where they may be; folders inside are not looked at.
        named: other names that the model's card gives; a path to elsewhere is not followed.
    """
    wanted = {name for name in named if isinstance(name, str) and Path(name).name == name}
    found: dict[str, Path] = {}
    for directory in filter(Path.is_dir, directories):
        for path in sorted(directory.iterdir()):
            if path.is_file() and (TERMS.fullmatch(path.name) or path.name in wanted):
                found.setdefault(path.name, path)
    return found


def is_licence(name: str) -> bool:
    """Say whether a file that states terms is the licence itself, not what goes with one."""
    return not name.lower().startswith(_ONLY_BESIDE)


def document_directories(file: Path) -> Iterator[Path]:
    """Give the directories where the documents of a GGUF file may be, the nearest first.

    A file inside a Python package has those of the package and of its dist-info. The directory of
    a program's source says nothing about a model that happens to lie there.
    """
    above = list(Path(os.path.abspath(file)).parents)
    inside = [at for at, folder in enumerate(above[:3]) if (folder / "__init__.py").is_file()]
    if not inside:
        if not any((above[0] / name).exists() for name in _SOFTWARE):
            yield above[0]
        return
    top, site = inside[-1], above[inside[-1] + 1]
    yield from above[: top + 1]
    entry = f"{Path(os.path.abspath(file)).relative_to(site).as_posix()},"
    for record in site.glob("*.dist-info/RECORD"):
        if entry in record.read_text(encoding="utf-8", errors="replace"):
            yield from (record.parent, record.parent / "licenses")
