"""``bitquilt search``: the mix of an exact size, as a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import (
    CALIBRATION,
    JSON,
    MODEL,
    OUTPUT,
    RECIPE,
    ROUNDING,
    SEVERAL_BITS,
    SIZE,
    TO,
    WORK_DIR,
    print_json,
    search_options,
)
from bitquilt.runtime.malloc import keep_freed_memory

if TYPE_CHECKING:
    from bitquilt.allocation.allocate import Search


@click.command()
@MODEL
@SEVERAL_BITS
@SIZE
@RECIPE
@TO
@OUTPUT
@CALIBRATION
@WORK_DIR
@ROUNDING
@search_options
@JSON
def search(
    model: str,
    bits: list[float] | None,
    size: str | None,
    recipe: str | None,
    to: str,
    output: str,
    calibration: str | None,
    work_dir: str | None,
    rounding: str,
    how: Search,
    as_json: bool,
) -> None:
    """Find the mix that quantize would use; write a recipe.

    \b
    bitquilt search demo --bits 4.5
    bitquilt search demo --bits 3,3.5,4 --search-time 300 -o recipes
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.pipeline import search as find

    keep_freed_memory()
    made = find(
        model,
        bits=bits,
        size=size,
        recipe=recipe,
        to=to,
        output=output,
        calibration=calibration,
        work_dir=work_dir,
        rounding=rounding,
        how=how,
    )
    if as_json:
        print_json({"recipes": [one.to_dict() for one in made]})
        return
    for one in made:
        click.echo(f"{one.path}: {one.mix}, for {one.nbytes:,} bytes")
