"""``bitquilt pair``: how well a small model drafts for a large one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, config_options, print_json, require_model
from bitquilt.cli.tables import figures_table, stdout_console
from bitquilt.errors import UserError
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
        _print(found, large, small)


def _print(found: PairResult, large: str, small: str) -> None:
    """Print what was found, and how LARGE and SMALL run together."""
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
            f"fast{_use(large, small)}.",
            markup=False,
        )
    else:
        console.print(f"On this machine no draft makes {found.large} faster.", markup=False)


def _use(large: str, small: str) -> str:
    """Say how the two run together."""
    from bitquilt.engines import require_draft_format

    try:
        require_draft_format(Path(large), Path(small))
    except UserError as error:
        return f"; but {error.sentence}"
    return f": `bitquilt run {large} --draft {small}`, and `serve` likewise"
