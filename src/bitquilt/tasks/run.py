"""Run tasks on models: problems, programs, multiple choice, and lm-evaluation-harness's tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bitquilt.engines import Engine, open_engine
from bitquilt.errors import UserError
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.compute import asking
from bitquilt.runtime.files import each_path
from bitquilt.runtime.near import did_you_mean
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.records import to_json
from bitquilt.tasks import problems, programs
from bitquilt.tasks.choices import ChoiceScore, Picks, compare_choices, pick, score_choices
from bitquilt.tasks.config import TaskConfig
from bitquilt.tasks.problems import Answers, Manner
from bitquilt.tasks.scores import (
    Metric,
    ProblemComparison,
    ProblemScore,
    compare_problems,
    score_problems,
)
from bitquilt.tasks.task_data import (
    CHOICES,
    PROBLEMS,
    PROGRAMS,
    Choice,
    Problem,
    Program,
    load_choices,
    load_problems,
    load_programs,
)


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """One model on all tasks."""

    model: str
    """The name of the model's file or directory."""
    problems: Sequence[ProblemScore]
    """The tasks with answers: problems and programs."""
    choices: Sequence[ChoiceScore]
    """The tasks with multiple choice."""
    harness: Sequence[Metric]
    """The tasks of lm-evaluation-harness."""
    problems_against_first: Mapping[str, ProblemComparison]
    """Task → the comparison with the first model; none for the first itself."""
    choices_against_first: Mapping[str, Estimate]
    """Task → accuracy by byte less that of the first model, item by item."""


@dataclass(frozen=True)
class TaskResults:
    """The result of :func:`run_tasks`."""

    models: Sequence[ModelScores]
    """The models, in the order they were given."""

    def to_dict(self) -> dict[str, Any]:
        """Give the scores in JSON types."""
        found: dict[str, Any] = to_json(self)
        return found


def run_tasks(
    models: str | Path | Sequence[str | Path],
    config: TaskConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> TaskResults:
    """Put tasks to models; all but the first are compared with the first.

    Args:
        models: what :func:`bitquilt.engines.open_engine` takes: GGUF files, MLX directories, hub
            ids, Hugging Face directories, or ``demo``; one, or several.
        config: which tasks, and how much of them.
        progress: where progress goes; stderr if not given.
        options: the fields of :class:`bitquilt.TaskConfig`, instead of a config.

    Raises:
        UserError: a task or model does not exist, a task may not run, or an option has no effect
            on any of the tasks.
    """
    progress = progress or Progress()
    config = TaskConfig.of(config, options)
    _check(config)
    items = _Items.load(config)
    answered: list[_Answered] = []
    scores: list[ModelScores] = []
    manner: Manner | None = None
    for model in map(str, each_path(models)):
        with asking(threads=config.threads), open_engine(model) as engine:
            manner = manner or _manner(engine, config, items, progress)
            answered.append(_put(items, engine, Path(model).name, manner, progress))
            metrics = _harness_metrics(engine, items.harness, config.limit, progress)
        scores.append(_scores(Path(model).name, answered[-1], answered[0], metrics))
    return TaskResults(tuple(scores))


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
class _Items:
    """What is put to every model: task → items."""

    problems: Mapping[str, Sequence[Problem]]
    programs: Mapping[str, Sequence[Program]]
    choices: Mapping[str, Sequence[Choice]]
    harness: Sequence[str]
    """Names of lm-evaluation-harness's tasks, which bring their own items."""

    @classmethod
    def load(cls, config: TaskConfig) -> _Items:
        """Load the items of all tasks.

        Raises:
            UserError: a task does not exist, or its items are not installed.
        """
        names, limit = config.tasks, config.limit
        return cls(
            harness=_harness_tasks(names),  # first: what does not exist is said before all else
            problems={name: load_problems(name)[:limit] for name in names if name in PROBLEMS},
            programs={name: load_programs(name)[:limit] for name in names if name in PROGRAMS},
            choices={name: load_choices(name)[:limit] for name in names if name in CHOICES},
        )


@dataclass(frozen=True)
class _Answered:
    """What one model made of the items: task → answers or picks."""

    problems: Mapping[str, Answers]
    choices: Mapping[str, Picks]


def _put(
    items: _Items, engine: Engine, model: str, manner: Manner, progress: Progress
) -> _Answered:
    """Put all items to one model."""
    answers: dict[str, Answers] = {}
    for name, asked in items.problems.items():
        with progress.stage(f"{model}: {name}", len(asked) * manner.repeats):
            answers[name] = problems.ask_problems(engine, asked, manner, progress)
    for name, wanted in items.programs.items():
        with progress.stage(f"{model}: {name}", len(wanted) * manner.repeats):
            answers[name] = programs.ask_for_programs(engine, wanted, manner, progress)
    picks: dict[str, Picks] = {}
    for name, offered in items.choices.items():
        with progress.stage(f"{model}: {name}", sum(len(one.endings) for one in offered)):
            picks[name] = pick(engine, offered, progress)
    return _Answered(answers, picks)


def _manner(engine: Engine, config: TaskConfig, items: _Items, progress: Progress) -> Manner:
    """How all models answer: with the sampling that the first one recommends."""
    sampling = engine.info.sampling
    answers = items.problems or items.programs
    if answers and config.repeats > 1 and sampling.temperature <= 0:
        progress.say(
            "The first model recommends no temperature, so all models answer greedily, with the "
            "same answer every time; --repeats=1 tells as much"
        )
    return Manner(config.repeats, config.max_tokens, sampling)


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


def _harness_metrics(
    engine: Engine, names: Sequence[str], limit: int | None, progress: Progress
) -> Sequence[Metric]:
    if not names:
        return ()
    from bitquilt.tasks import harness

    return harness.metrics(engine, names, limit, progress)


def _scores(model: str, own: _Answered, first: _Answered, metrics: Sequence[Metric]) -> ModelScores:
    """Score one model, against the first if it is another."""
    another = own is not first
    return ModelScores(
        model=model,
        problems=tuple(score_problems(name, answers) for name, answers in own.problems.items()),
        choices=tuple(score_choices(name, picks) for name, picks in own.choices.items()),
        harness=metrics,
        problems_against_first={
            name: compare_problems(first.problems[name], answers)
            for name, answers in own.problems.items()
            if another
        },
        choices_against_first={
            name: compare_choices(first.choices[name], picks)
            for name, picks in own.choices.items()
            if another
        },
    )
