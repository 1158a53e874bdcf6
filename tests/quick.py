"""``quantize`` on a few short windows of little text, for tests that are not about the text.

:func:`command` is the command line with that, for tests that need a process of its own;
:func:`invoke` is the command line in this process, as it is.
"""

from __future__ import annotations

import inspect
import os
import shlex
import signal
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 (seconds, once, for all forks)

from bitquilt import pipeline
from bitquilt.calibration import corpus, text
from bitquilt.calibration.corpus import Document
from bitquilt.calibration.text_budget import TextBudget
from bitquilt.cli.main import main

TEXTS = {"calibration": inspect.getsource(textwrap), "held-out": inspect.getsource(shlex)}


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Make ``quantize`` read windows of 32 tokens, few of them, and run no engine."""
    patch.setattr(
        pipeline, "text_budget", lambda *_, **__: TextBudget(4, 2, 2, 4, 16, 4, 4, 2, 100)
    )
    patch.setattr(pipeline, "WINDOW", 32)
    for module in (corpus, text):
        patch.setattr(module, "bundled", _bundled)
    patch.setattr(pipeline, "run_in_engine", lambda *_: (None, "not run: a test"))


def _bundled(split: str) -> list[Document]:
    return [Document("code", split, TEXTS[split], None)]


def command(arguments: list[str], log: Path, die_at: str | None = None) -> None:
    """Run ``bitquilt`` with these arguments, its output in ``log``.

    Args:
        arguments: of the command line.
        log: gets standard output and error.
        die_at: SIGKILL this process when it is about to put a file or directory of that name in
            its place.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    replace = os.replace

    def replace_or_die(source: Path, target: Path) -> None:
        if Path(target).name == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(os, "replace", replace_or_die)
        sys.argv = ["bitquilt", *arguments]
        main()


def invoke(*arguments: str | Path) -> int:
    """Run ``bitquilt`` with these arguments here and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bitquilt", *map(str, arguments)])
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")  # else main() would, for good
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0
