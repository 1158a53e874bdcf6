"""``bitquilt quantize``: one model file of an exact size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.allocation.budget import human
from bitquilt.cli.options import JSON, MODEL, config_options, print_json
from bitquilt.config import QuantizeConfig
from bitquilt.runtime.malloc import keep_freed_memory

if TYPE_CHECKING:
    from bitquilt.metrics.teacher import Figures
    from bitquilt.report.result import QuantizeResult


@click.command()
@MODEL
@config_options(QuantizeConfig)
@JSON
def quantize(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Round MODEL to an exact size and measure what that costs.

    \b
    bitquilt quantize demo --bits 4.5
    bitquilt quantize facebook/MobileLLM-R1-950M --size 600MB --to gguf
    bitquilt quantize demo --bits 3,3.5,4,4.5,5 --to both
    bitquilt quantize ./my-model --recipe Q4_K_M --to gguf
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt import pipeline

    keep_freed_memory()
    result = pipeline.quantize(model, config)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_table(result)


def _print_table(result: QuantizeResult) -> None:
    """Print the closing table: each file as torch reads it back, and as its own engine runs it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=result.model, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("file: mix", no_wrap=True)
    for column in ("size", "bits", "KL, nats/token", "top-1", "ppl"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("original", "", "", "", "", _perplexity(result.original))
    for output in result.outputs:
        size = (human(output.nbytes), f"{output.bits:.3f}")
        table.add_row(f"{output.target}: {output.source}", *size, *_measured(output.figures))
        if output.engine:
            name = f"  in {output.engine.engine}"
            table.add_row(name, "", "", *_measured(output.engine), style="dim")
    console = Console(highlight=False)
    console.print(table)
    for output in result.outputs:
        excerpt = f" ({output.engine.tokens:,} tokens)" if output.engine else ""
        line = f"{output.path}: {output.note}{excerpt}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(
        f"KL and top-1 agreement against the original, on {result.original.tokens:,} held-out "
        f"tokens; intervals are 95 %. {result.seconds:.0f} s in all.",
        soft_wrap=True,
    )


def _measured(figures: Figures) -> tuple[str, str, str]:
    return str(figures.kl), f"{figures.agreement.mean:.1%}", _perplexity(figures)


def _perplexity(figures: Figures) -> str:
    return f"{figures.perplexity.mean:.3f}"
