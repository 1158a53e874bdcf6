"""Tables and sentences on stdout, as eval, tasks and bench print them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitquilt.runtime.sizes import human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bitquilt.evaluation.figures import DomainFigures
    from bitquilt.metrics.kl import Estimate
    from bitquilt.metrics.teacher import Figures

NAME_WIDTH = 20
"""Columns that a file's name has in a table beside figures, in a terminal of 80."""


HEADING_WIDTH = 12
"""A heading takes no more columns than figures do: they would be folded where it is wider."""
SIZE_HEADINGS = ("size", "bits\n(disk)")
"""The headings of :func:`size_cells`."""
SIZE_NOTE = "Bits are bits per weight of the tensors and, in brackets, of everything on disk."


def size_cells(nbytes: int, bits: float, bits_on_disk: float) -> tuple[str, str]:
    """Write the size of a file: everything on disk, and the bits of its tensors.

    Args:
        nbytes: everything on disk.
        bits: bits per weight of the tensors.
        bits_on_disk: bits per weight of everything on disk.
    """
    return human(nbytes), f"{bits:.3f}\n({bits_on_disk:.2f})"


def stdout_console() -> Console:
    """Open stdout; sentences are wrapped by the terminal, numbers are not coloured."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def print_list(console: Console, sentences: Iterable[str]) -> None:
    """Print sentences as a list, each wrapped beside its own dash."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(overflow="fold")
    for sentence in sentences:
        grid.add_row("-", Text(sentence))
    console.print(grid)


def figures_table(first: str, columns: Sequence[str], *, fold_first: bool = False) -> Table:
    """Begin a table: what the lines are about, then columns of figures.

    Args:
        first: the heading of the first column, which is on the left.
        columns: the headings of the others, which are on the right.
        fold_first: whether long names in the first column may take several lines.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    if fold_first:  # name_cell has wrapped them to that width
        table.add_column(first, overflow="fold", min_width=NAME_WIDTH)
    else:
        table.add_column(first, no_wrap=True)
    for column in columns:
        heading = "\n".join(textwrap.fill(line, HEADING_WIDTH) for line in column.splitlines())
        table.add_column(heading, justify="right", overflow="fold")
    return table


def kind_rows(
    table: Table,
    about: Sequence[Any],
    kinds: Mapping[str, tuple[str, str, str]],
) -> None:
    """Add the rows of a file: what it is, and below that its figures on each kind of text.

    Args:
        table: has a column for the name, two for :func:`size_cells`, and those of the figures.
        about: the first three cells.
        kinds: the kind of text → the cells of its KL, agreement and perplexity. Where there is one
            without a name, they stand in the file's own row.
    """
    from bitquilt.report.figures import kind_label

    labels = {kind: kind_label(kind) for kind in kinds}
    if list(labels.values()) == [""]:
        table.add_row(*about, *next(iter(kinds.values())))
        return
    table.add_row(*about)
    for kind, cells in kinds.items():
        table.add_row(f"  {labels[kind]}", "", "", *cells)


def kind_cells(figures: Figures | DomainFigures) -> tuple[str, str, str]:
    """Write the KL with its interval, the agreement and the perplexity of one kind of text."""
    from bitquilt.report.figures import number

    return (
        figure_cell(figures.kl, "kl"),
        number(figures.agreement.mean, "agreement"),
        number(figures.perplexity.mean, "perplexity"),
    )


def name_cell(name: str) -> str:
    """Break a file's name after hyphens, where it is too long for a line of its cell."""
    return "\n".join(textwrap.wrap(name, NAME_WIDTH))


def figure_cell(estimate: Estimate, field: str) -> str:
    """Write a value, and its interval below it."""
    from bitquilt.report.figures import figure_text

    value, interval = figure_text(estimate, field)
    return f"{value}\n{interval.replace(' – ', '–')}"
