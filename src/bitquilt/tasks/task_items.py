"""What is put to models: the items of the tasks that are asked for.

Cheap to import, so that a task that does not exist is refused before an engine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from bitquilt.errors import UserError
from bitquilt.runtime.near import did_you_mean
from bitquilt.tasks.config import TaskConfig
from bitquilt.tasks.task_data import (
    CHOICES,
    PROBLEMS,
    PROGRAMS,
    Choice,
    Problem,
    Program,
)


def _check(config: TaskConfig) -> None:
    """Refuse what cannot be run, and options that none of the tasks heeds.

    Raises:
        UserError: the first such thing.
    """
    for name, times in Counter(config.tasks).items():
        if times > 1:
            raise UserError(f"the task {name} is given {times} times; give it once")
        if name in PROGRAMS and not config.run_code:
            raise UserError(
                f"the task {name} runs programs that models write; --run-code allows it, in a "
                "process of its own that cannot reach files, the network or other processes"
            )
    if config.run_code and not any(name in PROGRAMS for name in config.tasks):
        raise UserError(
            f"none of the tasks runs programs; leave out --run-code, or name {', '.join(PROGRAMS)}"
        )
    if not any(name in PROBLEMS or name in PROGRAMS for name in config.tasks):
        defaults = {field.name: field.default for field in fields(TaskConfig)}
        for option in ("repeats", "max_tokens"):
            if getattr(config, option) != defaults[option]:
                raise UserError(
                    f"--{option.replace('_', '-')} is for tasks with answers, and none is named; "
                    f"leave it out, or name {', '.join((*PROBLEMS, *PROGRAMS))}"
                )


@dataclass(frozen=True, kw_only=True)
class TaskItems:
    """What is put to every model: task → items."""

    problems: Mapping[str, Sequence[Problem]]
    programs: Mapping[str, Sequence[Program]]
    choices: Mapping[str, Sequence[Choice]]
    harness: Sequence[str]
    """Names of lm-evaluation-harness's tasks, which bring their own items."""

    @classmethod
    def load(cls, config: TaskConfig) -> TaskItems:
        """Load the items of all tasks.

        Raises:
            UserError: a task does not exist or may not run, its items are not installed, or an
                option has no effect on any of the tasks.
        """
        _check(config)
        names, limit = config.tasks, config.limit
        return cls(
            harness=_harness_tasks(names),  # first: what does not exist is said before all else
            problems={name: PROBLEMS[name]()[:limit] for name in names if name in PROBLEMS},
            programs={name: PROGRAMS[name]()[:limit] for name in names if name in PROGRAMS},
            choices={name: CHOICES[name]()[:limit] for name in names if name in CHOICES},
        )


def _harness_tasks(names: Sequence[str]) -> list[str]:
    """Give the tasks among them that are lm-evaluation-harness's.

    Raises:
        UserError: the harness has no such task, or is not installed.
    """
    ours = (*PROBLEMS, *PROGRAMS, *CHOICES)
    others = [name for name in names if name not in ours]
    if not others:
        return []
    try:
        from bitquilt.tasks import harness
    except ImportError:
        raise UserError(
            f"there is no task {others[0]}"
            + (
                did_you_mean(others[0], ours)
                or f"; choose among {', '.join(ours)}, or install lm-evaluation-harness for its "
                "tasks: `pip install 'bitquilt[tasks]'`"
            )
        ) from None
    for name in others:
        if not harness.task_manager().match_tasks([name]):
            raise UserError(
                f"there is no task {name}"
                + (
                    did_you_mean(name, (*ours, *harness.task_manager().all_tasks))
                    or f"; choose among {', '.join(ours)}, or what `lm_eval ls tasks` prints"
                )
            )
    return others
