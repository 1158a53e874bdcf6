"""The examples of docs/python.md run, one after the other, as on the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bitquilt
from bitquilt import demo
from bitquilt.evaluation.config import TraceConfig
from tests.factories import tiny_checkpoint
from tests.quick import QUICK, SEARCH

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def examples() -> list[str]:
    """The page's blocks of Python; empty lines before each keep the page's line numbers."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in blocks]


def on_little_text(function: Callable[..., Any], quick: dict[str, Any]) -> Callable[..., Any]:
    """A function of the package with options that the page does not speak of."""

    def call(model: str, config: Any = None, **options: Any) -> Any:
        if config is not None:
            return function(model, replace(config, **quick), **options)
        return function(model, **quick, **options)

    return call


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model takes the demo's place, which takes longer."""
    tiny = tiny_checkpoint(tmp_path)
    monkeypatch.setattr(demo, "path", lambda: tiny)
    monkeypatch.setattr(bitquilt, "quantize", on_little_text(bitquilt.quantize, QUICK))
    monkeypatch.setattr(bitquilt, "search", on_little_text(bitquilt.search, SEARCH))
    monkeypatch.setattr(
        bitquilt, "evaluate", partial(bitquilt.evaluate, traces=TraceConfig(count=2, shown=1))
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in examples():
        exec(compile(example, PAGE, "exec"), names)
    assert isinstance(names["file"], bitquilt.Output)
