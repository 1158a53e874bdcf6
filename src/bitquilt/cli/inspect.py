"""``bitquilt inspect``: what a model is, what is odd about it, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODEL, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitquilt.models.inspection import Inspection

_MB = 10**6
_LEAST_SHARE = 0.005
"""Types of a smaller share, those of norms, are not named."""


@click.command()
@MODEL
@JSON
def inspect(model: str, as_json: bool) -> None:
    """Show what MODEL is, where its bytes are, and what is unusual.

    \b
    bitquilt inspect facebook/MobileLLM-R1-950M
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from rich.console import Console

    from bitquilt.models.inspection import inspect as look

    found = look(model)
    if as_json:
        print_json(found.to_dict())
    else:
        Console(highlight=False).print(render(found))


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
