"""``bitquilt inspect``: what a model is, what is odd about it, what it costs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODEL, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitquilt.bases.relations import BaseRelation
    from bitquilt.models.inspection import Inspection

_MB = 10**6
_LEAST_SHARE = 0.005
"""Types of a smaller share, those of norms, are not named."""


@click.command()
@MODEL
@click.option(
    "--base",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="This GGUF file is MODEL as llama.cpp's converter writes it. Its matrices are listed with "
    "the parameters of MODEL that have the same numbers.",
)
@JSON
def inspect(model: str, base: Path | None, as_json: bool) -> None:
    """Show what MODEL is, where its bytes are, and what is unusual.

    \b
    bitquilt inspect facebook/MobileLLM-R1-950M
    bitquilt inspect ./granite --base granite-BF16.gguf
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from rich.console import Console

    from bitquilt.models.inspection import inspect as look

    found = look(model)
    relations = None if base is None else _relations(model, base)
    if as_json:
        told = {} if relations is None else {"base": [asdict(one) for one in relations]}
        print_json(found.to_dict() | told)
        return
    console = Console(highlight=False)
    console.print(render(found))
    if relations is not None:
        console.print("", _relations_table(relations))


def _relations(model: str, base: Path) -> list[BaseRelation]:
    from bitquilt.bases.relations import base_relations
    from bitquilt.runtime.progress import Silent

    return base_relations(model, base, Silent())


def _relations_table(relations: list[BaseRelation]) -> RenderableType:
    """Give each kind of matrix a row; names are long, so that they may take several lines."""
    from rich.table import Table

    table = Table("matrix of the base", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.columns[0].overflow = "fold"
    table.add_column("", justify="right")
    for column in ("parameters", "how they differ"):
        table.add_column(column, overflow="fold")
    for one in relations:
        names = [name.removesuffix(".weight") for name in (one.matrices, *one.parameters)]
        table.add_row(names[0], f"{one.count} ×", "\n".join(names[1:]) or "-", one.relation)
    return table


def render(inspection: Inspection) -> RenderableType:
    """Header, a table of parts, and the findings, each a subject and a sentence."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    findings = Table.grid(padding=(0, 2, 0, 0))
    for finding in inspection.findings:
        findings.add_row(f"[bold]{finding.subject}[/bold]", Text(finding.message))
    tables = [_table(inspection), ""] if inspection.parameters else []
    return Group(_header(inspection), "", *tables, findings)


def _header(found: Inspection) -> RenderableType:
    from rich.text import Text

    architecture = found.architecture
    if found.canonical_architecture != architecture:
        architecture = f"{architecture}, written as {found.canonical_architecture}"
    facts = [
        architecture,
        *([f"{found.parameters:,} parameters"] if found.parameters else []),
        *([f"{found.layers} layers"] if found.layers else []),
        *([f"width {found.hidden_size}"] if found.hidden_size else []),
        *([f"context {found.context:,}"] if found.context else []),
    ]
    return Text.assemble(
        (found.name, "bold"), f"\n{' · '.join(facts)}", f"\n{_types(found)}" if found.types else ""
    )


def _types(found: Inspection) -> str:
    """Say what the weights are stored as: ``Q4_K_M: 60 % Q4_K, 40 % Q6_K of the bytes``."""
    shares = {qtype: nbytes / found.bytes for qtype, nbytes in found.types.items()}
    told = [f"{share:.0%} {qtype}" for qtype, share in shares.items() if share >= _LEAST_SHARE]
    only = len(told) == 1
    said = next(iter(shares)) if only else f"{', '.join(told)} of the bytes"
    if found.file_type is None or (only and said == found.file_type):
        return said
    return f"{found.file_type}: {said}"


def _table(found: Inspection) -> RenderableType:
    from rich.table import Table

    table = Table("part", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("tensors", "parameters", "share", "MB"):
        table.add_column(column, justify="right")
    for part in found.parts:
        if part.name == "head" and found.tied:
            table.add_row("head", "", "the embedding", "", "")
            continue
        share = f"{part.parameters / found.parameters:.1%}"
        table.add_row(
            part.name, str(part.tensors), f"{part.parameters:,}", share, f"{part.bytes / _MB:.1f}"
        )
    total = sum(part.tensors for part in found.parts)
    table.add_row("all", str(total), f"{found.parameters:,}", "", f"{found.bytes / _MB:.1f}")
    return table
