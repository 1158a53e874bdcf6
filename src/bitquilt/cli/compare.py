"""``bitquilt compare``: two model files, whoever made them, side by side."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitquilt.cli.options import JSON, Whole, print_json, require_model
from bitquilt.cli.tables import NAME_WIDTH, name_cell, stdout_console
from bitquilt.errors import UserError
from bitquilt.evaluation.file_format import format_of
from bitquilt.models.names import kind_of
from bitquilt.runtime.options import Option

if TYPE_CHECKING:
    from rich.table import Table

    from bitquilt.allocation.stored_mix import MatrixPair, StoredMix
    from bitquilt.evaluation.results import Evaluation


@click.command("compare")
@click.argument("files", metavar="FILE FILE", nargs=-1)
@click.option(
    "--against",
    metavar="ORIGINAL",
    help="The files were made from this model. The KL of both from it is measured, as `bitquilt "
    "eval` does.",
)
@click.option(
    "--text",
    metavar="FILE",
    help="With --against, the KL is measured on this text instead of the bundled held-out text.",
)
@click.option(
    "--tokens",
    metavar="N",
    type=Whole(Option("", least=1024)),
    default=16_384,
    show_default=True,
    help="With --against, about this many tokens of the text are read.",
)
@JSON
def compare_files(
    files: tuple[str, ...], against: str | None, text: str | None, tokens: int, as_json: bool
) -> None:
    """Show types, bytes and KL of two model files side by side.

    Each FILE is a GGUF file or an MLX directory, from any tool.

    \b
    bitquilt compare theirs-Q4_K_M.gguf demo-4.5bit.gguf
    bitquilt compare theirs-Q4_K_M.gguf demo-4.5bit.gguf --against demo
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    if len(files) != 2:
        raise click.UsageError(
            f"compare takes two files, not {len(files)}", click.get_current_context()
        )
    if text is not None and against is None:
        raise UserError("--text has an effect only with --against, the model to measure against")
    targets = [format_of(file) for file in files]
    if against is not None:
        require_model(against)
    for target, file in zip(targets, files, strict=True):
        target.refuse_damaged(Path(file))
    from bitquilt.allocation.stored_mix import pairs_of, stored_mix, unlike_shapes

    one, other = (stored_mix(Path(file)) for file in files)
    if unlike := unlike_shapes(one, other):
        click.echo(unlike, err=True)
    pairs = pairs_of(one, other)
    found = None if against is None else _measured(files, against, text, tokens)
    if as_json:
        print_json(_object((one, other), pairs, found))
        return
    console = stdout_console()
    console.print(_table((one, other), pairs))
    if one.target is other.target:  # no type of a format is one of another
        different = sum(pair.differs for pair in pairs)
        console.print(f"{different} of {len(pairs)} matrices have other types.")
    for mix, line in zip((one, other), _kl_lines(found), strict=False):
        console.print(f"{mix.name}: {line}", markup=False)


def _measured(files: Sequence[str], against: str, text: str | None, tokens: int) -> Evaluation:
    from bitquilt.evaluation.compare import evaluate
    from bitquilt.evaluation.config import EvalConfig, TraceConfig

    traces = TraceConfig(count=0)
    return evaluate(files, EvalConfig(against=against, text=text, tokens=tokens, traces=traces))


def _kl_lines(found: Evaluation | None) -> list[str]:
    """Return a line for each file: its KL on every kind of text."""
    if found is None:
        return []
    return [
        "; ".join(f"KL {figures.kl} nats/token on {kind} text" for kind, figures in kinds.items())
        for kinds in (_figures(found, index) for index in range(len(found.files)))
    ]


def _figures(found: Evaluation, index: int) -> dict[str, Any]:
    """Return kind of text → figures of a file."""
    from bitquilt.calibration.text import KINDS

    file = found.files[index]
    return {kind: file.figures[kind] for kind in KINDS if kind in file.figures} or {
        "this": file.overall
    }


def _object(
    mixes: tuple[StoredMix, StoredMix], pairs: Sequence[MatrixPair], found: Evaluation | None
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "files": [
            {"name": mix.name, "format": str(mix.target), "bytes": mix.nbytes} for mix in mixes
        ],
        "matrices": {
            pair.module: {"types": list(pair.types), "bytes": list(pair.nbytes)} for pair in pairs
        },
    }
    return made if found is None else made | {"evaluation": found.to_dict()}


def _table(mixes: tuple[StoredMix, StoredMix], pairs: Sequence[MatrixPair]) -> Table:
    """Make a table with a row for each kind of matrix, and one for everything on disk."""
    from rich.table import Table

    table = Table("matrices", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for mix in mixes:
        table.add_column(name_cell(mix.name), overflow="fold")
        table.add_column("MB", justify="right")
    for kind in dict.fromkeys(kind_of(pair.module) for pair in pairs):
        own = [pair for pair in pairs if kind_of(pair.module) == kind]
        cells: list[str] = []
        for side in (0, 1):
            counts = Counter(pair.types[side] or "none" for pair in own)
            cells.append(_types_cell(counts))
            cells.append(f"{sum(pair.nbytes[side] for pair in own) / 1e6:.2f}")
        table.add_row(kind, *cells)
    totals = (cell for mix in mixes for cell in ("", f"{mix.nbytes / 1e6:.2f}"))
    table.add_row("everything on disk", *totals)
    return table


def _types_cell(counts: Counter[str]) -> str:
    """List how many matrices have which type; a number stays on the line of its type."""
    held = ", ".join(f"{count}\u00a0×\u00a0{name}" for name, count in counts.most_common())
    return textwrap.fill(held, NAME_WIDTH).replace("\u00a0", " ")
