"""An engine that is not installed as we need it is told apart from a file that it refuses."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from bitquilt.engines import llama_api
from bitquilt.engines.llamacpp import open_llamacpp
from bitquilt.errors import EngineMissingError


def missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_no_xllamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        EngineMissingError, match=r"none is installed; run `pip install xllamacpp=="
    ):
        llama_api.load_library()


def test_another_xllamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.2.0")
    with pytest.raises(
        EngineMissingError, match=r"0\.2\.0 is installed; run `pip install xllamacpp=="
    ):
        llama_api.load_library()


def test_an_xllamacpp_without_the_c_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_api._FUNCTIONS, "llama_of_tomorrow", (None, []))
    with pytest.raises(EngineMissingError, match=r"llama_of_tomorrow.*pip install --force"):
        llama_api.load_library()


def test_the_child_says_that_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty package of that name stands before the real one."""
    package = tmp_path / "xllamacpp"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(EngineMissingError, match="pip install"):
        open_llamacpp(tmp_path / "model.gguf")
