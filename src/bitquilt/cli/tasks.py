"""``bitquilt tasks``: how many problems models solve, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODELS, config_options, print_json
from bitquilt.cli.tables import figures_table, stdout_console
from bitquilt.tasks.config import TaskConfig

if TYPE_CHECKING:
    from rich.table import Table

    from bitquilt.metrics.kl import Estimate
    from bitquilt.tasks.run import ModelScores, TaskResults
    from bitquilt.tasks.scores import ProblemComparison, ProblemScore


@click.command()
@MODELS
@config_options(TaskConfig)
@JSON
def tasks(models: tuple[str, ...], config: TaskConfig, as_json: bool) -> None:
    """Measure how many problems each MODEL solves.

    MODEL is what `bitquilt run` takes. All models are compared with the first one.

    \b
    bitquilt tasks demo --tasks demo --limit 50
    bitquilt tasks original.gguf ours.gguf theirs.gguf --tasks gsm8k --repeats 8
    bitquilt tasks ours.gguf --tasks humaneval --run-code

    All tasks but demo need the extra `tasks`: pip install 'bitquilt[tasks]'.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.tasks.task_items import TaskItems

    TaskItems.load(config)  # what is wrong with it is said before engines are imported
    from bitquilt.tasks.run import run_tasks

    found = run_tasks(models, config)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: TaskResults) -> None:
    console = stdout_console()
    if any(one.problems for one in found.models):
        console.print(_problems(found))
    if any(one.choices for one in found.models):
        console.print(_choices(found))
    if any(one.harness for one in found.models):
        console.print(_harness(found))
    for sentence in _sentences(found):
        console.print(sentence, markup=False)


def _problems(found: TaskResults) -> Table:
    columns = ("task", "pass@1", "majority", "tokens", "cut", "loops", "no box")
    table = figures_table("model", columns, fold_first=True)
    for one in found.models:
        for score in one.problems:
            table.add_row(
                one.model,
                f"{score.task}\n[dim]{score.items} × {score.repeats}[/dim]",
                _share(score.pass_at_1),
                _share(score.majority),
                f"{score.tokens.mean:.0f}",
                *(f"{value:.0%}" for value in (score.truncated, score.looping, score.unboxed)),
            )
    return table


def _choices(found: TaskResults) -> Table:
    table = figures_table("model", ("task", "accuracy", "by bytes"), fold_first=True)
    for one in found.models:
        for score in one.choices:
            task = f"{score.task}\n[dim]{score.items}[/dim]"
            table.add_row(one.model, task, _share(score.accuracy), _share(score.accuracy_by_byte))
    return table


def _harness(found: TaskResults) -> Table:
    columns = ("lm-evaluation-harness", "metric", "value")
    table = figures_table("model", columns, fold_first=True)
    for one in found.models:
        for metric in one.harness:
            table.add_row(one.model, metric.task, metric.name, str(metric.value))
    return table


def _share(estimate: Estimate) -> str:
    """A share with its interval below."""
    return f"{estimate.mean:.1%}\n[dim]{100 * estimate.low:.0f}–{estimate.high:.0%}[/dim]"


def _sentences(found: TaskResults) -> Iterator[str]:
    """What may be concluded, and what it would take to conclude more."""
    for scores in zip(*(one.problems for one in found.models), strict=True):
        yield _worth(max(scores, key=lambda score: score.detectable))
    first = found.models[0].model
    for one in found.models[1:]:
        yield from _against(first, one)


def _worth(score: ProblemScore) -> str:
    runs = "one run" if score.repeats == 1 else f"{score.repeats} runs"
    return (
        f"{score.task}, {score.items} items, {runs}: a difference of about "
        f"{100 * score.detectable:.0f} points between two models would be found four times in five."
    )


def _against(first: str, one: ModelScores) -> Iterator[str]:
    for task, compared in one.problems_against_first.items():
        lead = f"{task}: {one.model} against {first}: {_points(compared.difference)}"
        (repeats,) = {score.repeats for score in one.problems if score.task == task}
        yield f"{lead}. {_needed(compared, repeats)}"
    for task, difference in one.choices_against_first.items():
        yield f"{task}: {one.model} against {first}: {_points(difference)}."


def _points(difference: Estimate) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    verdict = "" if low > 0 or high < 0 else ", which may be chance"
    return f"{100 * difference.mean:+z.1f} points [{low:+z.1f}, {high:+z.1f}]{verdict}"


def _needed(compared: ProblemComparison, repeats: int) -> str:
    wanted = f"To find a difference of {100 * compared.wanted:.0f} points four times in five takes"
    if compared.repeats is not None:
        least = "at least " if repeats == 1 else ""  # one run does not tell chance from items
        return f"{wanted} {least}{compared.repeats:,} answers to each of these problems."
    return f"{wanted} {compared.items:,} problems; more answers to these would not help."
