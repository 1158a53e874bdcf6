"""``quantize`` on a few short windows of little text, for tests that are not about the text.

:data:`QUICK` are options for the Python functions. :func:`invoke` is the command line with them in
this process, :func:`command` in a process of its own.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import signal
import string
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 (seconds, once, for all forks)

from bitquilt import TextBudget
from bitquilt.cli.main import main

TEXTS = {"calibration": inspect.getsource(textwrap), "held-out": inspect.getsource(shlex)}
_FOLDER = Path(tempfile.mkdtemp(prefix="quick-"))


def _documents(name: str, **modules: ModuleType) -> Path:
    """A file of a document of each domain: the source of a module."""
    path = _FOLDER / f"{name}.jsonl"
    lines = [
        {"domain": domain, "source": name, "text": inspect.getsource(module)}
        for domain, module in modules.items()
    ]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


QUICK = {
    "text_budget": TextBudget(
        calibration=4,
        held_out=2,
        tuning=16,
        interactions=4,
        search=4,
        selection=2,
        races=100,
        window=32,
    ),
    "calibration": _documents("calibration", code=textwrap),
    "held_out": _documents("held-out", code=shlex, other=string),
    "engine_check": False,
}
SEARCH = {name: value for name, value in QUICK.items() if name != "engine_check"}
"""Those of them that ``search`` takes."""


def command(
    arguments: list[str],
    log: Path,
    die_at: str | tuple[str, int] | None = None,
    by: signal.Signals = signal.SIGKILL,
    large_from: int | None = None,
) -> None:
    """Run ``bitquilt`` with these arguments, its output in ``log``.

    Args:
        arguments: of the command line.
        log: gets standard output and error.
        die_at: send this process a signal when it is about to put a file or directory that matches
            this pattern in its place, for the first time or the n-th.
        by: which signal.
        large_from: models of so many weights are large ones; those of 512 million if not given.
    """
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    replace = os.replace
    pattern, times = die_at if isinstance(die_at, tuple) else (die_at, 1)

    def replace_or_die(source: Path, target: Path) -> None:
        nonlocal times
        if pattern is not None and Path(target).match(pattern):
            times -= 1
            if times == 0:
                os.kill(os.getpid(), by)
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        if large_from is not None:
            patch.setattr("bitquilt.forecast.work.ESTIMATED_FROM", large_from)
        main(arguments, **QUICK)


def invoke(*arguments: str | Path) -> int:
    """Run ``bitquilt`` with these arguments here and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMERS_VERBOSITY", "error")  # else main() would, for good
        try:
            main([*map(str, arguments)], **QUICK)
        except SystemExit as end:
            return int(end.code or 0)
        return 0
