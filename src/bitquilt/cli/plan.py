"""``bitquilt plan``: sizes and the recipe, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from bitquilt.cli.options import JSON, MODEL, config_options, require_possible, show
from bitquilt.config import QuantizeConfig, SearchConfig
from bitquilt.errors import worded
from bitquilt.models.names import kind_of

if TYPE_CHECKING:
    from rich.table import Table

    from bitquilt.allocation.plan import Plan
    from bitquilt.converted.plan_base import BasePlan
    from bitquilt.forecast.estimate import Forecast
    from bitquilt.streaming.quantize_gguf import GgufPlan

KNEE = (
    "This plan has read no weights, so it cannot tell whether a slightly larger file would be much "
    "closer to the original. `bitquilt quantize` and `bitquilt search` warn if it would."
)
"""What is said in place of the knee (docs/decisions/knee.md)."""

GUESS = (
    "The types are a first guess, because this plan has read no text. `bitquilt quantize` chooses "
    "them by what it measures, and its file takes at most the size that you ask for."
)
"""Of models that bitquilt has no tables of: their files are not filled up to a size."""


@click.command()
@MODEL
@config_options(QuantizeConfig)
@JSON
def plan(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Print the exact size and the types that `quantize` would write.

    MODEL may also be a config.json alone. With --bits or --size, the size is final; the types are a
    first guess that `quantize` improves within that size. Time, memory and disk are estimates for
    this machine. All options of `quantize` can be given to `plan`, too.

    A model of a family that bitquilt does not know itself is converted first, as for `quantize`,
    which then uses the converted file again.

    With --imatrix, the types are final as well. To choose them, `plan` reads a sample of the
    model's weights, which takes longer.
    """
    require_possible(config)
    if config.imatrix is not None:
        _plan_gguf(model, config, as_json)
        return
    from bitquilt.streaming.base import needs_base

    if config.base is not None or needs_base(model):
        _plan_base(model, config, as_json)
        return
    from bitquilt.allocation import plan as planning
    from bitquilt.forecast.estimate import estimate

    show(
        lambda: planning.plan(model, config),
        lambda plans: _object(plans, estimate(model, config)),
        lambda plans: _print(plans, estimate(model, config), config.search),
        as_json,
    )


def _plan_gguf(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Plan what `quantize` makes of a GGUF file as a stream."""
    from bitquilt.streaming.quantize_gguf import plan_gguf_files

    show(
        lambda: plan_gguf_files(model, config),
        lambda plans: {"plans": [planned.to_dict() for planned in plans]},
        _print_gguf,
        as_json,
    )


def _plan_base(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Plan what `quantize` makes of a model that has no tables."""
    from bitquilt.converted.plan_base import plan_base

    show(
        lambda: plan_base(model, config),
        lambda plans: {"plans": [planned.to_dict() for planned in plans]},
        _print_base,
        as_json,
    )


def _print_base(plans: list[BasePlan]) -> None:
    from rich.console import Console

    from bitquilt.cli.tables import stdout_console

    console = Console(highlight=False)
    for planned in plans:
        about = "bytes on disk" if planned.exact else "bytes on disk by this guess"
        console.print(
            f"[bold]{planned.target}[/bold]: {planned.nbytes:,} {about}, {planned.bits:.3f} bits "
            "per weight\n"
        )
        console.print(_mix(planned.types), "")
    if not all(planned.exact for planned in plans):
        stdout_console().print(GUESS, markup=False, soft_wrap=False)


def _print_gguf(plans: list[GgufPlan]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for planned in plans:
        console.print(f"{planned.nbytes:,} bytes on disk, {planned.bits:.3f} bits per weight\n")
        console.print(_mix(planned.types), "")


def _object(plans: list[Plan], forecast: Forecast) -> dict[str, Any]:
    _say_notes(plans, forecast)
    return {"plans": [planned.to_dict() for planned in plans], "forecast": forecast.to_dict()}


def _say_notes(plans: list[Plan], forecast: Forecast) -> None:
    notes = dict.fromkeys(note for planned in plans for note in planned.notes)
    for note in [*notes, *filter(None, [forecast.disk.lacking])]:
        click.echo(worded(note), err=True)


def _print(plans: list[Plan], forecast: Forecast, search: SearchConfig) -> None:
    from bitquilt.cli.tables import stdout_console

    _say_notes(plans, forecast)
    for planned in plans:
        _print_one(planned)
    chosen = any(planned.space for planned in plans) and search.tokens_per_second is None
    for line in [KNEE] * chosen + [*forecast.lines]:
        stdout_console().print(worded(line), markup=False, soft_wrap=False)


def _print_one(planned: Plan) -> None:
    """Print the size, its parts, and the mix: no line is wider than a terminal of 80."""
    from rich.console import Console

    console = Console(highlight=False)
    total = planned.layout.total_bytes
    console.print(
        f"[bold]{planned.target}[/bold]: {total:,} bytes on disk, {planned.bits:.3f} bits per "
        f"weight\n({planned.bits_on_disk:.3f} bits per weight with everything on disk counted)\n"
    )
    if not planned.layout.breakdown["tokenizer"]:
        console.print(
            "The tokenizer is not included: a config.json alone does not tell its size.\n"
        )
    console.print(_breakdown(planned.layout.breakdown, total), "")
    console.print(_mix(planned.allocation), "")


def _breakdown(parts: Mapping[str, int], total: int) -> Table:
    from rich.table import Table

    table = Table("part", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("bytes", "MB", "share"):
        table.add_column(column, justify="right")
    for part, nbytes in parts.items():
        table.add_row(part, f"{nbytes:,}", _megabytes(nbytes), f"{nbytes / total:.1%}")
    return table


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f}"


def _mix(allocation: Mapping[str, str]) -> Table:
    """Make a table with a row for each kind of matrix: how many of them have which type."""
    from rich.table import Table

    qtypes: dict[str, Counter[str]] = {}
    for module, qtype in allocation.items():
        kind = kind_of(module.removesuffix(".weight"))
        qtypes.setdefault(kind, Counter())[qtype] += 1
    table = Table("matrix", "types", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, found in qtypes.items():
        table.add_row(name, ", ".join(f"{count} × {qtype}" for qtype, count in found.most_common()))
    return table
