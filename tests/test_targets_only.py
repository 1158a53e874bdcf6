"""What differs between output formats is in ``targets`` and nowhere else.

Four others may name formats. ``qtypes`` says which format holds a type, ``gguf`` says what its own
files are called, ``engines`` looks at files that others wrote, to find the engine for them, and
``converted/formats`` begins with what the format's own converter wrote, another program for each.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitquilt.targets import ALL, GGUF, MLX, TARGETS, Target, get_target, parse_targets, target_of

PACKAGE = Path(__file__).parent.parent / "src" / "bitquilt"
HOME = ("targets", "qtypes", "converted/formats", "gguf/__init__.py", "engines/__init__.py")
"""Folders and files that may name formats."""
LITERALS = {word for target in TARGETS.values() for word in (target.name, target.suffix)}
INSTANCES = {target.name.upper() for target in TARGETS.values()}
TESTS_OF_TEXT = {"endswith", "removesuffix", "startswith", "removeprefix", "with_suffix"}


def sources() -> list[Path]:
    homes = [PACKAGE / home for home in HOME]
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.is_relative_to(home) for home in homes)
    ]


def names_a_format(node: ast.AST | None) -> bool:
    """Whether an expression is a format, its name or suffix, or a literal that contains one."""
    match node:
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return any(map(names_a_format, elements))
        case ast.Constant(value=value):
            return value in LITERALS
        case ast.Attribute(value=owner):
            return names_a_format(owner)
        case ast.Name(id=name):
            return name in INSTANCES
    return False


def told_apart(code: str) -> Iterator[int]:
    """The lines that tell formats apart.

    Something is compared with a format, its name or its suffix, is keyed by one or matched on one,
    or such a literal is given a name, under which it could be compared with unseen.
    """
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
            case ast.Assign(value=value) | ast.AnnAssign(value=value):
                found = [value]
            case ast.Call(func=ast.Attribute(attr=name), args=arguments) if name in TESTS_OF_TEXT:
                found = list(arguments)
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
        "d = {GGUF.name: 1}",
        "x is MLX",
        'NAME = "mlx"',
        'NAMES: tuple[str, ...] = ("gguf",)',
        'path.suffix == ".gguf"',
        'path.name.removesuffix(".gguf")',
        'path.name.endswith("-mlx")',
        """
        match x:
            case "gguf":
                pass
        """,
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(told_apart(textwrap.dedent(code)))
    other = re.sub("gguf|mlx", "onnx", textwrap.dedent(code), flags=re.IGNORECASE)
    assert not list(told_apart(other))


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
