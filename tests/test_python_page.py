"""The examples of docs/python.md run, one after the other, as on the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitquilt import demo
from tests.factories import tiny_checkpoint
from tests.quick import hurry

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def examples() -> list[str]:
    """The page's blocks of Python; empty lines before each keep the page's line numbers."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in blocks]


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model takes the demo's place, which takes longer."""
    tiny = tiny_checkpoint(tmp_path)
    monkeypatch.setattr(demo, "path", lambda: tiny)
    hurry(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples():
        exec(compile(example, PAGE, "exec"), names)
    assert names["bitquilt"]
