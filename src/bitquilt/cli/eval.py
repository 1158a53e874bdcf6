"""``bitquilt eval``: is it still the model? Files against their original, on held-out text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, print_json
from bitquilt.runtime.malloc import keep_freed_memory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bitquilt.evaluation.results import Comparison, Evaluation, Row
    from bitquilt.metrics.kl import Estimate

TABLES = (
    {"KL, mean": "kl", "median": "kl_median", "99.9 %": "kl_999"},
    {"same top-1": "agreement", "flips": "flips"},
    {"perplexity": "perplexity", "… over original's": "perplexity_ratio",
     "bits per byte": "bits_per_byte"},
)  # fmt: skip
"""Heading → figure; one table with all of them is too wide for a terminal of 80."""
SHARES = ("agreement", "flips")


@click.command("eval")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--against", metavar="ORIGINAL", help="What MODEL was made from.")
@click.option("--text", metavar="FILE", help="Text instead of the bundled one (.txt, .jsonl).")
@click.option(
    "--tokens",
    type=click.IntRange(min=1024),
    default=65_536,
    show_default=True,
    help="How much of it to read, about.",
)
@click.option(
    "--work-dir",
    metavar="DIR",
    help="Where the original's answers are kept for the next time.  [default: the user's cache]",
)
@click.option(
    "--tasks",
    metavar="NAME,…",
    help="Run tasks instead: demo, gsm8k, aime2025; humaneval; hellaswag, truthfulqa_mc1; or "
    "any of lm-evaluation-harness's.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of tasks: answers to each problem.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Of tasks: only so many items.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Of tasks: the longest answer.",
)
@click.option(
    "--run-code",
    is_flag=True,
    help="Of tasks: let programs that MODEL writes run here, locked down (humaneval).",
)
@JSON
def evaluate(
    models: tuple[str, ...],
    against: str | None,
    text: str | None,
    tokens: int,
    work_dir: str | None,
    tasks: str | None,
    repeats: int,
    limit: int | None,
    max_tokens: int,
    run_code: bool,
    as_json: bool,
) -> None:
    """Measure how far each MODEL is from ORIGINAL.

    MODEL is a GGUF file or an MLX directory.

    \b
    bitquilt eval demo-4.5bit.gguf --against demo
    bitquilt eval ours.gguf theirs.gguf --against facebook/MobileLLM-R1-950M
    bitquilt eval ours.gguf theirs.gguf --tasks gsm8k --repeats 8

    The figures of each are also kept beside it, in MODEL.eval.json, for `report` and `card`.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    if tasks is not None:
        from bitquilt.cli.tasks import run_tasks
        from bitquilt.tasks.tasks import TaskConfig

        if text or work_dir:
            raise click.UsageError("tasks bring their own text; leave out --text and --work-dir")
        every = models if against is None else (against, *models)
        effort = TaskConfig(repeats, limit, max_tokens, run_code)
        run_tasks(every, [name.strip() for name in tasks.split(",")], effort, as_json)
        return
    if limit or run_code or repeats > 1:
        raise click.UsageError("--repeats, --limit and --run-code are of tasks; name some: --tasks")
    if against is None:
        raise click.UsageError("say what MODEL was made from with --against, or give --tasks")
    from bitquilt.evaluation.compare import evaluate as measure

    keep_freed_memory()
    found = measure(models, against=against, text=text, tokens=tokens, work_dir=work_dir)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    """All figures of each file, then what may be concluded."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for row in found.rows:
        _print_row(console, row)
        _print_check(console, row)
    if len(found.rows) > 1:
        console.print("", _overview(found))
    for comparison in found.comparisons:
        console.print(_verdict(comparison), markup=False)
    floors = "; ".join(f"{floor.name} {floor.kl}" for floor in found.floors)
    console.print(f"Noise: KL of the original with nothing quantized: {floors}.", markup=False)
    first = next(iter(found.own.values()))
    console.print(
        f"{first.tokens:,} held-out tokens of {first.documents} documents; intervals are 95 %, "
        f"over documents. {found.seconds:.0f} s in all.",
        markup=False,
    )


def _print_row(console: Console, row: Row) -> None:
    """All figures of one file, a line a domain."""
    from rich import box
    from rich.table import Table

    from bitquilt.allocation.budget import human

    title = f"{row.name}, {human(row.nbytes)}, {row.bits:.3f} bits, in {row.engine}"
    console.print(f"[bold]{title}[/bold]")
    for columns in TABLES:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for heading in columns:
            table.add_column(heading, justify="right", overflow="fold")
        for domain, figures in row.figures.items():
            cells = (_cell(getattr(figures, name), name) for name in columns.values())
            table.add_row(domain, *cells)
        console.print(table)


def _overview(found: Evaluation) -> Table:
    """One line a file, sizes together."""
    from rich import box
    from rich.table import Table

    from bitquilt.allocation.budget import human

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("file", no_wrap=True)
    for column in ("size", "bits", "KL, mean", "same top-1", "perplexity"):
        table.add_column(column, justify="right", overflow="fold")
    for row in sorted(found.rows, key=lambda row: row.nbytes):
        all_of_it = next(iter(row.figures.values()))
        table.add_row(
            row.name,
            human(row.nbytes),
            f"{row.bits:.3f}",
            _cell(all_of_it.kl, "kl"),
            _value(all_of_it.agreement.mean, "agreement"),
            _value(all_of_it.perplexity.mean, "perplexity"),
        )
    return table


def _print_check(console: Console, row: Row) -> None:
    check = row.check
    verdict = "within" if check.agree else "more than"
    console.print(
        f"On {check.tokens:,} tokens its KL is {check.in_engine.mean:.3g} in its engine and "
        f"{check.in_torch.mean:.3g} in torch on the same weights: {check.apart} apart, {verdict} "
        f"what the engine's own arithmetic adds, {check.between}.",
        markup=False,
    )


def _verdict(comparison: Comparison) -> str:
    names = " and ".join(comparison.names)
    if comparison.winner is None:
        return f"Of one size, {names}: no difference that the intervals allow to call."
    leads = "; ".join(
        f"{name} by {lead}"
        for name, lead in zip(comparison.names[1:], comparison.ahead, strict=True)
    )
    return f"Of one size, {comparison.winner} is the closest to the original: KL below {leads}."


def _value(value: float, name: str) -> str:
    if name in SHARES:
        return f"{value:.2%}"
    return f"{value:.4f}" if name == "perplexity_ratio" else f"{value:.3g}"


def _cell(estimate: Estimate, name: str) -> str:
    """A value and under it its interval, if there are enough documents for one."""
    value = _value(estimate.mean, name)
    if math.isnan(estimate.low):
        return value
    return f"{value}\n{_value(estimate.low, name)}–{_value(estimate.high, name)}"
