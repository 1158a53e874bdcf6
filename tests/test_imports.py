"""Imports go one way, and the command line starts without the heavy libraries."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "bitquilt"

# A module may import what stands above its line, and its own package. Nothing else.
ORDER = (
    "errors",
    "runtime",
    "demo",
    "gguf",
    "models",
    "qtypes",
    "calibration",
    "bases",
    "metrics",
    "engines",
    "talk",
    "serve",
    "targets",
    "trimming",
    "rounding",
    "config",
    "allocation",
    "streaming",
    "converted",
    "forecast",
    "evaluation",
    "tasks",
    "report",
    "run_text",
    "pipeline",
    "base_pipeline",
    "cli",
    "__main__",
)

HEAVY = (
    "torch",
    "starlette",
    "pydantic",
    "uvicorn",
    "transformers",
    "numpy",
    "scipy",
    "mlx",
    "mlx_lm",
    "gguf",
    "xllamacpp",
)


def sources() -> list[Path]:
    """Every module but the package's own __init__, which offers the public names lazily."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path: Path) -> str:
    """The line of ORDER that a file belongs to: ``targets`` for ``targets/layout.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_units(path: Path) -> Iterator[tuple[int, str]]:
    """Each import of bitquilt in a file, inside functions too, as (line, unit)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import from bitquilt on"
            whole = node.module == "bitquilt"
            names = [f"bitquilt.{a.name}" for a in node.names] if whole else [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bitquilt" and parts[1:] and parts[1] != "__version__":
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = unit(path)
    assert own in ORDER, f"give {own} its line in ORDER"
    for line, other in imported_units(path):
        assert other in ORDER, f"{path}:{line}: there is no bitquilt.{other} in ORDER"
        assert ORDER.index(other) <= ORDER.index(own), (
            f"{path}:{line}: {own} comes before {other} and cannot import it"
        )


@pytest.mark.parametrize("module", ["bitquilt", "bitquilt.cli.main"])
def test_heavy_libraries_wait_until_they_are_needed(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY})))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
"""Modules of Python that Windows does not have."""


def test_modules_can_be_imported_on_windows() -> None:
    """What Windows lacks is imported under a condition; the sandbox's script says so itself."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sources()
        if path != PACKAGE / "tasks" / "sandbox.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if (isinstance(node, ast.Import) and POSIX & {alias.name for alias in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module in POSIX)
    ]
    assert found == []


VERBS = {"bench", "evaluate", "inspect", "plan", "quantize", "search"}
"""Functions of the package that the command line offers under the same name."""


def test_every_name_is_defined_once() -> None:
    """A public name means one thing; only verbs and entry points have two places."""
    homes: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                continue
            for name in names:
                homes.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    twice = {name: there for name, there in homes.items() if len(there) > 1 and name[0] != "_"}
    assert {name: there for name, there in twice.items() if name not in VERBS | {"main"}} == {}
