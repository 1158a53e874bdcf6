"""``bitquilt plan``: sizes and the recipe, before any work."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import BITS, JSON, MODEL, RECIPE, SIZE, TO, print_json

if TYPE_CHECKING:
    from bitquilt.plan import Plan


@click.command()
@MODEL
@BITS
@SIZE
@RECIPE
@TO
@JSON
def plan(
    model: str, bits: float | None, size: str | None, recipe: str | None, to: str, as_json: bool
) -> None:
    """Print the exact size of what `quantize` would write, and the mix.

    MODEL may also be a config.json alone. With a budget, the size is final; the mix is a first
    guess that `quantize` improves within it.
    """
    from bitquilt.plan import plan as make

    plans = make(model, bits=bits, size=size, recipe=recipe, to=to)
    if as_json:
        print_json({"plans": [made.to_dict() for made in plans]})
        return
    for made in plans:
        _print(made)


def _print(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    total = made.layout.total_bytes
    table = Table(
        title=f"{made.target}: {total:,} bytes, {made.bits:.3f} bits per weight",
        title_justify="left",
    )
    for column in ("part", "bytes", "MiB", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, nbytes in made.layout.breakdown.items():
        table.add_row(part, f"{nbytes:,}", f"{nbytes / 2**20:.1f}", f"{nbytes / total:.1%}")
    console = Console(highlight=False)
    console.print(table)
    mix = Counter(made.assignment.values())
    console.print("matrices: " + ", ".join(f"{n} × {grid}" for grid, n in mix.most_common()))
