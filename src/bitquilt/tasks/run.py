"""Run tasks on models: problems, programs, multiple choice, and lm-evaluation-harness's tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitquilt.engines import Engine, open_engine
from bitquilt.metrics.kl import Estimate
from bitquilt.models.sources.resolve import resolve
from bitquilt.runtime.compute import asking
from bitquilt.runtime.files import each_path
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
from bitquilt.tasks.task_items import TaskItems


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
    items = TaskItems.load(config)
    for model in each_path(models):
        resolve(str(model))  # before the first of several answers for minutes
    first: _Answered | None = None
    scores: list[ModelScores] = []
    manner: Manner | None = None
    for model in map(str, each_path(models)):
        with asking(threads=config.threads), open_engine(model) as engine:
            manner = manner or _manner(engine, config, items, progress)
            own = _put(items, engine, Path(model).name, manner, progress)
            metrics = _harness_metrics(engine, items.harness, config.limit, progress)
        first = first or own
        scores.append(_scores(Path(model).name, own, first, metrics))
    return TaskResults(tuple(scores))


@dataclass(frozen=True)
class _Answered:
    """What one model made of the items: task → answers or picks."""

    problems: Mapping[str, Answers]
    choices: Mapping[str, Picks]


def _put(
    items: TaskItems, engine: Engine, model: str, manner: Manner, progress: Progress
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


def _manner(engine: Engine, config: TaskConfig, items: TaskItems, progress: Progress) -> Manner:
    """How all models answer: with the sampling that the first one recommends."""
    sampling = engine.info.sampling
    answers = items.problems or items.programs
    if answers and config.repeats > 1 and sampling.temperature <= 0:
        progress.say(
            "The first model recommends no temperature, so all models answer greedily, with the "
            "same answer every time; --repeats=1 tells as much"
        )
    return Manner(config.repeats, config.max_tokens, sampling)


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
