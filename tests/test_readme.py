"""README and documentation speak of commands, folders and pages that are there."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from bitquilt.cli.main import bitquilt
from bitquilt.cli.options import options_of
from tests.test_imports import ORDER

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bitquilt"
DECISIONS = ROOT / "docs" / "decisions"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "examples" / "README.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page != ROOT / "docs" / "cli.md"),
]


def commands(page: Path) -> tuple[list[str], list[str]]:
    """The command lines of a page that start with ``bitquilt``: whole ones, and mentions."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ {4,}(bitquilt [a-z][^|\n]*)", text, re.MULTILINE)
    spans = re.findall(r"`(bitquilt [a-z][^`|]*)`", text)
    return blocks, spans


def parse(line: str, *, whole: bool) -> None:
    """Read a command line as click would, without running it.

    Args:
        line: the command.
        whole: it is complete; else arguments and values may be missing.

    Raises:
        click.UsageError: there is no such verb or option, or an argument is wrong or missing.
    """
    verb, *arguments = shlex.split(line, comments=True)[1:]
    command = bitquilt.commands.get(verb)
    if command is None:
        raise click.UsageError(f"there is no bitquilt {verb}")
    if whole:
        command.make_context(
            verb, arguments, parent=click.Context(bitquilt, **bitquilt.context_settings)
        )
    known = {"-h", "--help", *options_of(command)}
    for argument in arguments:
        if argument.startswith("-") and argument not in known:
            raise click.UsageError(f"bitquilt {verb} has no {argument}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks, spans = commands(page)
    for line in blocks:
        parse(line, whole=True)
    for line in spans:
        parse(line, whole=False)


@pytest.mark.parametrize(
    "line", ["bitquilt quantise demo", "bitquilt plan demo --bitts 4", "bitquilt eval x --agains y"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_command_that_does_not_exist_is_noticed(line, whole):
    with pytest.raises(click.UsageError):
        parse(line, whole=whole)


def test_readme_is_short_and_names_every_verb():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert commands(ROOT / "README.md")[0]
    for verb in bitquilt.commands:
        assert f"`{verb}`" in readme or f"    bitquilt {verb} " in readme, verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """The site's builder checks links within docs/; here those from and to the rest."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|srcset)=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if "://" not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page):
    """``rounding/gptq.py`` in backticks is below src/bitquilt, the root, or the page's folder."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|cu|json|md|svg))`", text):
        assert any((place / path).exists() for place in (ROOT, PACKAGE, page.parent)), path


def test_architecture_has_a_line_for_every_folder():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in sorted(path.parent for path in PACKAGE.glob("*/__init__.py")):
        assert re.search(rf"^ {{4}}.*\b{folder.name}/ ", page, re.MULTILINE), folder.name


def test_every_package_says_what_it_is_for():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert text, folder


def test_the_index_has_every_decision():
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    for page in DECISIONS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_architecture_has_the_order_of_imports():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^    ([\w]+)(?:/|\.py) ", page, re.MULTILINE)
    assert tuple(listed) == tuple(unit for unit in ORDER if unit != "__main__")
