"""Tasks: problems, programs and choices that come in packages, and lm-evaluation-harness's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitquilt.engines import Engine, open_engine
from bitquilt.errors import UserError
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.files import nan_to_null
from bitquilt.runtime.progress import Progress
from bitquilt.tasks import problems, programs
from bitquilt.tasks.likelihood import encode_pair, likelihoods
from bitquilt.tasks.problems import Answers, Manner, Score, Versus
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

if TYPE_CHECKING:  # lm_eval is an extra
    from bitquilt.tasks.harness import Metric


@dataclass(frozen=True)
class Picks:
    """A model on the items of a multiple-choice task, each [I]."""

    right: NDArray[np.bool_]
    """Whether the likeliest ending is the right one."""
    right_by_byte: NDArray[np.bool_]
    """The same with likelihoods over the bytes of the endings, so that short ones do not win."""


@dataclass(frozen=True)
class ChoiceScore:
    """A model on a multiple-choice task."""

    task: str
    items: int
    accuracy: Estimate
    accuracy_by_byte: Estimate


@dataclass(frozen=True)
class Standing:
    """One model on all tasks."""

    model: str
    reasoning: tuple[Score, ...]
    choices: tuple[ChoiceScore, ...]
    harness: tuple[Metric, ...]
    """Of the tasks that are not ours."""
    versus: Mapping[str, Versus]
    """Task → against the first model, for problems."""
    versus_choices: Mapping[str, Estimate]
    """Task → accuracy by byte less that of the first model, item by item."""


@dataclass(frozen=True)
class Standings:
    """What :func:`run` found."""

    models: tuple[Standing, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        found: dict[str, Any] = nan_to_null(asdict(self))
        return found


@dataclass(frozen=True)
class TaskConfig:
    """How much of the tasks to run."""

    repeats: int
    """Answers to each problem."""
    limit: int | None
    """Items of a task, the first; None for all."""
    max_tokens: int
    """Of an answer."""
    run_code: bool = False
    """Whether programs that models write may be run here."""


def run(
    models: Sequence[str],
    names: Sequence[str],
    effort: TaskConfig,
    progress: Progress | None = None,
) -> Standings:
    """Run tasks on models; all but the first are compared with the first.

    Args:
        models: what :func:`bitquilt.engines.open_engine` takes.
        names: of :data:`~bitquilt.tasks.task_data.PROBLEMS`, ``PROGRAMS`` and ``CHOICES``; others
            are lm-evaluation-harness's.
        effort: how much.
        progress: where progress goes.

    Raises:
        UserError: a task or model that is not there, or a task that may not run.
    """
    progress = progress or Progress()
    for name in names:
        if name in PROGRAMS and not effort.run_code:
            raise UserError(
                f"the task {name} runs programs that models write; --run-code allows it, in a "
                "process of its own without files, network and other processes"
            )
    others = _others(names)
    asked: dict[str, tuple[Callable[..., Answers], Sequence[Problem] | Sequence[Program]]] = {
        **{n: (problems.ask, load_problems(n)[: effort.limit]) for n in names if n in PROBLEMS},
        **{n: (programs.ask, load_programs(n)[: effort.limit]) for n in names if n in PROGRAMS},
    }
    offered = {name: load_choices(name)[: effort.limit] for name in names if name in CHOICES}
    standings: list[Standing] = []
    answered: list[dict[str, Answers]] = []
    picked: list[dict[str, Picks]] = []
    manner: Manner | None = None
    for model in models:
        with open_engine(model) as engine:
            manner = manner or _manner(engine, effort, asked, progress)
            answered.append({})
            picked.append({})
            for name, (ask, own) in asked.items():
                total = len(own) * effort.repeats
                with progress.stage(f"{Path(model).name}: {name}", total):
                    answered[-1][name] = ask(engine, own, manner, progress)
            for name, items in offered.items():
                total = sum(len(item.endings) for item in items)
                with progress.stage(f"{Path(model).name}: {name}", total):
                    picked[-1][name] = pick(engine, items, progress)
            measured = _measured(engine, others, effort.limit, progress)
        standings.append(_standing(model, answered, picked, measured))
    return Standings(tuple(standings))


def _manner(
    engine: Engine, effort: TaskConfig, asked: Collection[str], progress: Progress
) -> Manner:
    """How all models answer: with the sampling that the first one recommends."""
    sampling = engine.info.sampling
    if asked and effort.repeats > 1 and sampling.temperature <= 0:
        progress.say(
            "the first model recommends no temperature, so all models say what is likeliest, the "
            "same in every run; --repeats 1 tells as much"
        )
    return Manner(effort.repeats, effort.max_tokens, sampling)


def _others(names: Sequence[str]) -> list[str]:
    """The tasks among them that are lm-evaluation-harness's.

    Raises:
        UserError: the harness has no such task, or is not there.
    """
    ours = (*PROBLEMS, *PROGRAMS, *CHOICES)
    others = [name for name in names if name not in ours]
    if not others:
        return []
    try:
        from bitquilt.tasks import harness
    except ImportError:
        raise UserError(
            f"there is no task {others[0]}; choose among {', '.join(ours)}, or install "
            "lm-evaluation-harness for its tasks: pip install 'bitquilt[tasks]'"
        ) from None
    for name in others:
        if not harness.task_manager().match_tasks([name]):
            raise UserError(
                f"there is no task {name}; choose among {', '.join(ours)}, or what "
                "lm_eval ls tasks prints"
            )
    return others


def _measured(
    engine: Engine, names: Sequence[str], limit: int | None, progress: Progress
) -> tuple[Metric, ...]:
    if not names:
        return ()
    from bitquilt.tasks import harness

    return harness.metrics(engine, names, limit, progress)


def pick(engine: Engine, items: Sequence[Choice], progress: Progress) -> Picks:
    """The likeliest ending of every item; ``step`` is called after each ending."""
    pairs = [encode_pair(engine, item.context, ending) for item in items for ending in item.endings]
    nats = iter([found.nats for found in likelihoods(engine, pairs, progress)])
    right, by_byte = [], []
    for item in items:
        own = np.array([next(nats) for _ in item.endings])
        sizes = np.array([len(ending.encode()) for ending in item.endings])
        right.append(own.argmax() == item.right)
        by_byte.append((own / sizes).argmax() == item.right)
    return Picks(np.array(right), np.array(by_byte))


def _standing(
    model: str,
    answered: Sequence[Mapping[str, Answers]],
    picked: Sequence[Mapping[str, Picks]],
    measured: tuple[Metric, ...],
) -> Standing:
    """The last model, against the first if it is another."""
    several = len(answered) > 1
    return Standing(
        Path(model).name,
        tuple(problems.score(name, answers) for name, answers in answered[-1].items()),
        tuple(_choice_score(name, picks) for name, picks in picked[-1].items()),
        measured,
        {n: problems.compare(answered[0][n], own) for n, own in answered[-1].items() if several},
        {n: _gained(picked[0][n], own) for n, own in picked[-1].items() if several},
    )


def _choice_score(name: str, picks: Picks) -> ChoiceScore:
    shares = [problems.share(hits[:, None]) for hits in (picks.right, picks.right_by_byte)]
    return ChoiceScore(name, len(picks.right), *shares)


def _gained(first: Picks, second: Picks) -> Estimate:
    return problems.ahead(second.right_by_byte.astype(float) - first.right_by_byte)
