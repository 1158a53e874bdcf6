"""``bitquilt eval --tasks``: what was answered, how sure that is, what it takes to know more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bitquilt.cli.options import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from bitquilt.metrics.kl import Estimate
    from bitquilt.tasks.problems import Score, Versus
    from bitquilt.tasks.tasks import Standing, Standings, TaskConfig


def run_tasks(
    models: Sequence[str],
    tasks: Sequence[str],
    effort: TaskConfig,
    as_json: bool,
) -> None:
    """Run tasks and print what they found."""
    from bitquilt.tasks.tasks import run

    found = run(models, tasks, effort)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Standings) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if any(standing.reasoning for standing in found.models):
        console.print(_problems(found))
    if any(standing.choices for standing in found.models):
        console.print(_choices(found))
    if any(standing.harness for standing in found.models):
        console.print(_harness(found))
    for sentence in _sentences(found):
        console.print(sentence, markup=False)


def _problems(found: Standings) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("model", overflow="fold")
    for column in ("task", "pass@1", "majority", "tokens", "cut", "loops", "no box"):
        table.add_column(column, justify="right")
    for standing in found.models:
        for one in standing.reasoning:
            table.add_row(
                standing.model,
                f"{one.task}\n[dim]{one.items} × {one.repeats}[/dim]",
                _share(one.pass_at_1),
                _share(one.majority),
                f"{one.tokens.mean:.0f}",
                *(f"{value:.0%}" for value in (one.truncated, one.looping, one.unboxed)),
            )
    return table


def _choices(found: Standings) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("model", overflow="fold")
    for column in ("task", "accuracy", "by bytes"):
        table.add_column(column, justify="right")
    for standing in found.models:
        for one in standing.choices:
            task = f"{one.task}\n[dim]{one.items}[/dim]"
            accuracies = (_share(one.accuracy), _share(one.accuracy_by_byte))
            table.add_row(standing.model, task, *accuracies)
    return table


def _harness(found: Standings) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("model", overflow="fold")
    table.add_column("lm-evaluation-harness", overflow="fold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for standing in found.models:
        for one in standing.harness:
            table.add_row(standing.model, one.task, one.name, str(one.value))
    return table


def _share(estimate: Estimate) -> str:
    """A share with its interval below."""
    return f"{estimate.mean:.1%}\n[dim]{100 * estimate.low:.0f}–{estimate.high:.0%}[/dim]"


def _sentences(found: Standings) -> Iterator[str]:
    """What may be concluded, and what it would take to conclude more."""
    for scores in zip(*(standing.reasoning for standing in found.models), strict=True):
        yield _worth(max(scores, key=lambda score: score.smallest))
    first = found.models[0].model
    for standing in found.models[1:]:
        yield from _against(first, standing)


def _worth(score: Score) -> str:
    runs = "one run" if score.repeats == 1 else f"{score.repeats} runs"
    return (
        f"{score.task}, {score.items} items, {runs}: two models would have to differ by about "
        f"{100 * score.smallest:.0f} points to be told apart four times in five."
    )


def _against(first: str, standing: Standing) -> Iterator[str]:
    for task, versus in standing.versus.items():
        lead = f"{task}: {standing.model} against {first}: {_points(versus.difference)}"
        (repeats,) = {score.repeats for score in standing.reasoning if score.task == task}
        yield f"{lead}. {_needed(versus, repeats)}"
    for task, difference in standing.versus_choices.items():
        yield f"{task}: {standing.model} against {first}: {_points(difference)}."


def _points(difference: Estimate) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    verdict = "" if low > 0 or high < 0 else ", no difference beyond doubt"
    return f"{100 * difference.mean:+.1f} points [{low:+.1f}, {high:+.1f}]{verdict}"


def _needed(versus: Versus, repeats: int) -> str:
    wanted = f"To see {100 * versus.wanted:.0f} points four times in five takes"
    if versus.repeats is not None:
        least = "at least " if repeats == 1 else ""  # one run does not tell chance from items
        return f"{wanted} {least}{versus.repeats:,} answers to each of these problems."
    return f"{wanted} {versus.items:,} problems: more answers to these do not help."
