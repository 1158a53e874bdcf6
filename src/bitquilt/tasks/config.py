"""What ``bitquilt tasks`` can be told; cheap to import, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which problems to put to models, and how often."""

    tasks: Sequence[str]
    """Run these tasks: demo, gsm8k, aime2025 (answers in a box); humaneval (programs); hellaswag,
    truthfulqa_mc1 (multiple choice); or any of lm-evaluation-harness's."""
    repeats: int = 1
    """Ask each problem this many times, with different seeds."""
    limit: int | None = None
    """Use only the first items of each task, this many; all if not given."""
    max_tokens: int = 4096
    """Cut an answer after this many tokens, its reasoning included."""
    run_code: bool = False
    """Allow programs that a model writes to run here, locked down; humaneval needs it."""
