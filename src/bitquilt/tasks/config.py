"""What ``bitquilt tasks`` can be asked for; cheap to import, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitquilt.runtime.compute import threads_option
from bitquilt.runtime.options import Options, option
from bitquilt.talk.config import ANSWER_TOKENS


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Options):
    """Which problems are put to models, and how often."""

    tasks: Sequence[str] = option(
        "These tasks are run: demo, gsm8k, aime2025 (answers in a box); humaneval (programs); "
        "hellaswag, truthfulqa_mc1 (multiple choice); or any of lm-evaluation-harness's.",
        metavar="NAME,…",
        many=True,
    )
    repeats: int = option(
        "Each problem is asked this many times, with different seeds.",
        default=1,
        metavar="N",
        least=1,
    )
    limit: int | None = option(
        "Only the first N items of each task are used.",
        default=None,
        metavar="N",
        least=1,
    )
    max_tokens: int = option(
        "An answer is cut after this many tokens, its reasoning included.",
        default=ANSWER_TOKENS,
        metavar="N",
        least=1,
    )
    run_code: bool = option(
        "Programs that a model writes may run on this machine, locked down; humaneval needs this.",
        default=False,
    )
    threads: int | None = threads_option()
