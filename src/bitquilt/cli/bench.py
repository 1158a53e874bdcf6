"""``bitquilt bench``: how fast models run here, side by side, against what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODELS, config_options, print_json
from bitquilt.cli.tables import figures_table, print_list, stdout_console
from bitquilt.evaluation.config import BenchConfig
from bitquilt.runtime.sizes import human

if TYPE_CHECKING:
    from bitquilt.evaluation.speed import BenchResult


@click.command()
@MODELS
@config_options(BenchConfig)
@JSON
def bench(models: tuple[str, ...], config: BenchConfig, as_json: bool) -> None:
    """Measure how fast each MODEL runs on this machine.

    MODEL is what `run` takes. GGUF files run in llama.cpp, MLX directories in mlx-lm, and anything
    else in PyTorch, in float32. The models take turns, so that other work on this machine slows all
    of them alike. The percentage below a speed tells how much of this machine's own limit it
    reaches: arithmetic for prompts, memory bandwidth for answers. Of a mixture of experts it counts
    all experts, although a token reads only a few of them.

    \b
    bitquilt bench demo-4.5bit.gguf demo-Q4_K_M.gguf --batch 1,8
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.evaluation.speed import bench as measure
    from bitquilt.runtime.load import BUSY, load_per_core

    busy = load_per_core() > BUSY
    found = measure(models, config)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found, busy)


def _print(found: BenchResult, busy: bool) -> None:
    """Print one table for each load, models side by side; ``busy`` if others use the machine."""
    console = stdout_console()
    told = all(speed.joules is not None for speed in found.speeds)
    for load, speeds in groupby(found.speeds, key=lambda speed: speed.load):
        several = f"{load.batch} prompts" if load.batch > 1 else "one prompt"
        console.print(
            f"[bold]{several} of {load.prompt} tokens, answers of {load.answer} tokens[/bold]"
        )
        columns = ("prompt,\ntokens/s", "answer,\ntokens/s", "first\ntoken", "late gap", "memory")
        headings = (*columns, "J/token") if told else columns
        table = figures_table("file", headings, fold_first=True)
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
    console.print("About these figures:")
    print_list(console, _about(found, told, busy))


def _about(found: BenchResult, told: bool, busy: bool) -> Iterator[str]:
    """Say what the figures are, a sentence or two a line; ``told`` if energy is among them."""
    machine = found.machine
    yield (
        f"This machine is {machine.name}, {machine.cores} cores. It reads "
        f"{machine.bandwidth / 1e9:.1f} GB/s from memory and computes "
        f"{machine.flops / 1e9:.0f} GFLOP/s in float32."
    )
    yield (
        "The percentage below a prompt's speed is the share of these GFLOP/s that it uses. It is "
        "above 100 % if an engine multiplies integers, which can be faster than float32."
    )
    yield "The percentage below an answer's speed is the share of these GB/s that it uses."
    yield "One in twenty gaps between tokens is longer than the late gap."
    turns = f"medians of {found.rounds} turns" if found.rounds > 1 else "of one turn"
    yield f"Figures are {turns}."
    if not told:
        yield "Energy is not shown, since this system does not report it."
    if busy:
        yield "Other programs used this machine; without them, models are faster."
