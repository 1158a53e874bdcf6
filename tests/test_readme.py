"""The README shows every unit and every verb; every package says what it is for."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bitquilt"


def test_tree_has_a_line_for_every_unit():
    readme = (ROOT / "README.md").read_text()
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        assert f"\n      {folder.name}/ " in readme, folder


def test_every_package_says_what_it_is_for():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, folder


def test_every_verb_is_in_the_readme():
    from bitquilt.cli.main import bitquilt

    readme = (ROOT / "README.md").read_text()
    for verb in bitquilt.commands:
        assert f"`bitquilt {verb} " in readme
