"""``bitquilt pair``: how well a small model drafts for a large one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, config_options, print_json, require_model
from bitquilt.cli.tables import figures_table, stdout_console
from bitquilt.evaluation.config import PairConfig

if TYPE_CHECKING:
    from bitquilt.evaluation.pair import PairResult


@click.command()
@click.argument("large")
@click.argument("small")
@config_options(PairConfig)
@JSON
def pair(large: str, small: str, config: PairConfig, as_json: bool) -> None:
    """Measure how much faster LARGE is with SMALL as its draft model.

    In speculative decoding, a small model writes a few tokens ahead. The large model checks them
    all at once and keeps those that it would have said itself, so the text stays its own. Here,
    LARGE answers some questions, SMALL reads the answers, and both are timed.

    \b
    bitquilt pair MobileLLM-R1-950M-4.5bit.gguf MobileLLM-R1-140M-4.5bit.gguf
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    for model in (large, small):
        require_model(model)
    from bitquilt.evaluation.pair import measure_pair

    found = measure_pair(large, small, config)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: PairResult) -> None:
    console = stdout_console()
    console.print(
        f"{found.small} says the same next token as {found.large} for {found.agreement:.1%} of "
        f"{found.tokens:,} tokens in {found.answers} answers. Alone, {found.large} writes "
        f"{found.large_rate:.1f} tokens/s and {found.small} {found.small_rate:.1f}.",
        markup=False,
    )
    table = figures_table("tokens drafted", ("tokens\na step", "speed-up"))
    for gain in found.gains:
        table.add_row(str(gain.draft), f"{gain.kept:.2f}", f"{gain.speedup:.2f}")
    console.print(table)
    best = found.best
    if best.speedup > 1:
        console.print(
            f"Drafts of {best.draft} tokens would make {found.large} {best.speedup:.2f} times as "
            f"fast: `bitquilt run {found.large} --draft {found.small}`, and `serve` likewise.",
            markup=False,
        )
    else:
        console.print(f"On this machine no draft makes {found.large} faster.", markup=False)
