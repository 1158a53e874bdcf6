"""``bitquilt quantize``: one model file of an exact size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import BITS, JSON, MODEL, RECIPE, SIZE, TO, print_json

if TYPE_CHECKING:
    from bitquilt.result import Result


@click.command()
@MODEL
@BITS
@SIZE
@RECIPE
@TO
@click.option(
    "-o", "--output", default=".", show_default=True, help="Directory for what is written."
)
@click.option(
    "--calibration", metavar="FILE", help="Text instead of the bundled one (.txt, .jsonl)."
)
@click.option(
    "--work-dir",
    metavar="DIR",
    help="Where stages keep their results, so that the same command continues if stopped.  "
    "[default: <output>/<model>.work]",
)
@JSON
def quantize(
    model: str,
    bits: float | None,
    size: str | None,
    recipe: str | None,
    to: str,
    output: str,
    calibration: str | None,
    work_dir: str | None,
    as_json: bool,
) -> None:
    r"""Round MODEL to an exact size and measure what that costs.

    \b
    bitquilt quantize demo --bits 4.5
    bitquilt quantize facebook/MobileLLM-R1-950M --size 600MB --to gguf
    bitquilt quantize ./my-model --recipe Q4_K_M --to gguf
    """
    from bitquilt.pipeline import quantize as make

    result = make(
        model,
        bits=bits,
        size=size,
        recipe=recipe,
        to=to,
        output=output,
        calibration=calibration,
        work_dir=work_dir,
    )
    if as_json:
        print_json(result.to_dict())
    else:
        _table(result)


def _table(result: Result) -> None:
    """The closing table."""
    from rich.console import Console
    from rich.table import Table

    from bitquilt.search.budget import human

    table = Table(title=f"{result.model}, on held-out text", title_justify="left")
    table.add_column("file", overflow="fold")
    for column in ("size", "bits", "KL, nats/token", "same top token", "perplexity", "measured in"):
        table.add_column(column, justify="right")
    table.add_row("original", "", "", "0", "100 %", f"{result.original.perplexity.mean:.3f}", "")
    for output in result.outputs:
        measured = [output.figures] + ([output.engine] if output.engine else [])
        for index, figures in enumerate(measured):
            table.add_row(
                "" if index else str(output.path),
                "" if index else human(output.nbytes),
                "" if index else f"{output.bits:.3f}",
                str(figures.kl),
                f"{figures.agreement.mean:.1%}",
                f"{figures.perplexity.mean:.3f}",
                f"{figures.engine}, {figures.tokens:,} tokens",
            )
    console = Console(highlight=False)
    console.print(table)
    for output in result.outputs:
        console.print(f"{output.path}: {output.note}", markup=False)
    console.print(f"Intervals are 95 %. {result.seconds:.0f} s in all.")
