"""What differs between output formats is in ``targets`` and nowhere else."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitquilt.targets import ALL, GGUF, MLX, TARGETS, Target, get_target, parse_targets, target_of

PACKAGE = Path(__file__).parent.parent / "src" / "bitquilt"
HOME = ("targets", "qtypes")
"""Folders that may name formats: the formats themselves, and the types that say who holds them."""


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in HOME]


def names_a_format(node: ast.AST | None) -> bool:
    """Whether an expression is the name of a format, or a literal that contains one."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(names_a_format, node.elts))
    return isinstance(node, ast.Constant) and node.value in TARGETS


def told_apart(code: str) -> Iterator[int]:
    """The lines where something is compared with, keyed by or matched on a format's name."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Compare(left=left, comparators=others):
                found = [left, *others]
            case ast.Dict(keys=keys):
                found = list(keys)
            case ast.Subscript(slice=key):
                found = [key]
            case ast.MatchValue(value=value):
                found = [value]
            case ast.For(iter=values) | ast.comprehension(iter=values):
                found = [values]
            case _:
                continue
        yield from (part.lineno for part in found if part is not None and names_a_format(part))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_formats_are_told_apart_in_targets_only(path: Path) -> None:
    lines = sorted(told_apart(path.read_text("utf-8")))
    assert not lines, f"{path}:{lines}: ask bitquilt.targets.Target instead"


@pytest.mark.parametrize(
    "code",
    [
        'x == "gguf"',
        '"mlx" != x',
        'x in ("gguf", "onnx")',
        'd = {"mlx": 1}',
        'd["gguf"]',
        '[t for t in ("gguf", "mlx")]',
        """
        match x:
            case "gguf":
                pass
        """,
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(told_apart(textwrap.dedent(code)))
    assert not list(told_apart(textwrap.dedent(code).replace("gguf", "a").replace("mlx", "b")))


def test_every_target_says_all_that_differs() -> None:
    facts = Target.__annotations__.keys()
    for target in TARGETS.values():
        assert [fact for fact in facts if not hasattr(target, fact)] == []
        assert get_target(target.name) is target
        assert parse_targets(target.name) == [target]
    assert parse_targets(ALL) == [GGUF, MLX]


def test_the_target_of_types() -> None:
    from bitquilt import qtypes

    types = {name: qtypes.get(name) for name in ("BF16", "Q4_K", "4bit-g64")}
    assert target_of([types["BF16"]]) is GGUF
    assert target_of([types["BF16"], types["Q4_K"]]) is GGUF
    assert target_of([types["BF16"], types["4bit-g64"]]) is MLX
    with pytest.raises(ValueError, match="no output format"):
        target_of(types.values())
