"""``bitquilt bench``: how fast models run here, side by side, against what the machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, print_json

if TYPE_CHECKING:
    from bitquilt.evaluation.speed import Bench


def _counts(_: click.Context, param: click.Parameter, value: str) -> list[int]:
    """``128,512`` → [128, 512]."""
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise click.BadParameter(
            f"{value} is no list of whole numbers like 128,512, each at least 1", param=param
        )
    return list(dict.fromkeys(found))


@click.command()
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--prompt",
    callback=_counts,
    metavar="N,N…",
    default="128,1024",
    show_default=True,
    help="Tokens of a prompt.",
)
@click.option(
    "--batch",
    callback=_counts,
    metavar="N,N…",
    default="1,4",
    show_default=True,
    help="Prompts continued at once.",
)
@click.option(
    "--answer",
    type=click.IntRange(min=16),  # tokens reach us in bursts: fewer say nothing of speed
    default=64,
    show_default=True,
    help="Tokens of an answer.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Turns of each model; figures are medians over them.",
)
@JSON
def bench(
    models: tuple[str, ...],
    prompt: list[int],
    batch: list[int],
    answer: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure how fast each MODEL runs on this machine.

    MODEL is a GGUF file or an MLX directory. Models take turns, so that whatever else goes on
    disturbs all of them alike.
    """
    from bitquilt.evaluation.speed import bench as measure

    found = measure(models, prompt, batch, answer, rounds)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Bench) -> None:
    """One table a load, models side by side."""
    from itertools import groupby

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from bitquilt.allocation.budget import human

    console = Console(highlight=False, soft_wrap=True)
    told = all(speed.joules is not None for speed in found.speeds)
    for load, speeds in groupby(found.speeds, key=lambda speed: speed.load):
        several = f"{load.batch} prompts" if load.batch > 1 else "one prompt"
        console.print(f"[bold]{several} of {load.prompt} tokens, {load.answer} answered[/bold]")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("file", overflow="fold")
        columns = ["prompt/s", "answer/s", "first", "late gap", "memory"]
        for column in (*columns, "J/token") if told else columns:
            table.add_column(column, justify="right")
        for one in speeds:
            table.add_row(
                one.name,
                f"{one.prompt_rate:.0f}\n[dim]{one.of_flops:.0%}[/dim]",
                f"{one.answer_rate:.1f}\n[dim]{one.of_bandwidth:.0%}[/dim]",
                f"{one.first_token * 1e3:.0f} ms",
                f"{one.late_gap * 1e3:.1f} ms",
                human(one.resident),
                *([f"{one.joules:.3g}"] if told else []),
            )
        console.print(table)
    machine = found.machine
    console.print(
        f"{machine.name}, {machine.cores} cores: {machine.bandwidth / 1e9:.1f} GB/s from memory, "
        f"{machine.flops / 1e9:.0f} GFLOP/s in float32. Under tokens a second: the share of those "
        "that a prompt's products and a step's reading of the file come to. A late gap is one that "
        f"one in twenty between tokens exceeds. Medians of {found.rounds} turns."
        + ("" if told else " This system does not tell energy."),
        markup=False,
    )
