"""``bitquilt search``: the mix of an exact size, as a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.clean import work_dir_told
from bitquilt.cli.options import JSON, MODEL, config_options, require_place, require_possible, show
from bitquilt.config import AllocationConfig
from bitquilt.runtime.malloc import keep_freed_memory

if TYPE_CHECKING:
    from bitquilt.report.result import SearchResult


@click.command()
@MODEL
@config_options(AllocationConfig)
@JSON
def search(model: str, config: AllocationConfig, as_json: bool) -> None:
    """Choose types as quantize would, and write them as a recipe.

    \b
    bitquilt search demo --bits 4.5
    bitquilt search demo --bits 3,3.5,4 --search-time 300 -o recipes
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_possible(config)
    require_place(model, config)
    config.require_budget(model)
    from bitquilt import pipeline

    keep_freed_memory()
    show(
        lambda: pipeline.search(model, config),
        lambda found: {"recipes": [recipe.to_dict() for recipe in found]},
        _print,
        as_json,
    )


def _print(found: list[SearchResult]) -> None:
    from bitquilt.allocation.selection import called

    for recipe in found:
        whose = called(recipe.source)
        said = f"{recipe.path}: the types of {whose}, for a file of {recipe.nbytes:,} bytes"
        for best in recipe.rankings[:1]:  # none where there was nothing to choose from
            said += f"; their selection KL is {best.kl:.3g} nats/token on {best.tokens:,} tokens "
            said += "that the search has not read"
        click.echo(said)
    for work_dir in dict.fromkeys(recipe.work_dir for recipe in found):
        click.echo(work_dir_told(work_dir))
