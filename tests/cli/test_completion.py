"""``python -m bitquilt`` is the command line, and shells complete its words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitquilt

ROOT = Path(__file__).parents[2]


def python_m_bitquilt(*arguments: str, **environment: str) -> str:
    """What ``python -m bitquilt`` prints."""
    command = [sys.executable, "-m", "bitquilt", *arguments]
    surroundings = os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=surroundings
    ).stdout


def test_the_package_runs():
    assert python_m_bitquilt("--version") == f"bitquilt, version {bitquilt.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell):
    assert "_BITQUILT_COMPLETE" in python_m_bitquilt(_BITQUILT_COMPLETE=f"{shell}_source")


@pytest.mark.parametrize(
    ("line", "word"), [("bitquilt quan", "quantize"), ("bitquilt plan --rec", "--recipe")]
)
def test_words_are_completed(line, word):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = python_m_bitquilt(_BITQUILT_COMPLETE="bash_complete", **words)
    assert done.split() == [f"plain,{word}"]
