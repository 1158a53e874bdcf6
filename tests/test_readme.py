"""The README's tree says of each file what the file says of itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tree_has_a_line_for_every_module():
    readme = (ROOT / "README.md").read_text()
    for file in sorted((ROOT / "src" / "bitquilt").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        if docstring is None or file == ROOT / "src" / "bitquilt" / "__init__.py":
            continue
        first_line = docstring.splitlines()[0]
        rows = [line for line in readme.splitlines() if f" {file.name} " in f" {line.strip()} "]
        assert any(first_line in row for row in rows), f"{file}: {first_line}"


def test_every_verb_is_in_the_readme():
    from bitquilt.cli.main import bitquilt

    readme = (ROOT / "README.md").read_text()
    for verb in bitquilt.commands:
        assert f"`bitquilt {verb} " in readme
