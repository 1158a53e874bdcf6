"""``bitquilt eval``: is it still the model? Files against their original, on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODEL_FILES, config_options, print_json, require_model
from bitquilt.cli.tables import (
    SIZE_HEADINGS,
    SIZE_NOTE,
    figure_cell,
    figures_table,
    kind_cells,
    kind_rows,
    name_cell,
    print_list,
    size_cells,
    stdout_console,
)
from bitquilt.evaluation.config import EvalConfig
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.runtime.sizes import human

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from bitquilt.evaluation.figures import DomainFigures
    from bitquilt.evaluation.results import Comparison, Evaluation, FileResult
    from bitquilt.evaluation.wikitext import WikitextFigures
    from bitquilt.metrics.kl import Estimate

TABLES = (
    ("kl", "kl_median", "kl_999"),
    ("agreement", "flips"),
    ("perplexity", "perplexity_ratio", "bits_per_byte"),
)
"""Figures side by side; one table with all of them is too wide for a terminal of 80."""
MANY = 6
"""Domains beyond which each has a line in one table, rather than a few in every table."""


class _Eval(click.Command):
    """Sends who asks for problems to the verb that puts them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(argument.partition("=")[0] == "--tasks" for argument in args):
            raise click.UsageError(
                "eval measures on text; to see how many problems a model solves, use `bitquilt "
                "tasks MODEL... --tasks NAME,…`",
                ctx,
            )
        return super().parse_args(ctx, args)


@click.command("eval", cls=_Eval)
@MODEL_FILES
@config_options(EvalConfig)
@JSON
def evaluate(models: tuple[str, ...], config: EvalConfig, as_json: bool) -> None:
    """Measure how far each MODEL is from its original.

    MODEL is a GGUF file or an MLX directory. The original also answers some of the text's
    questions, and each MODEL is measured on these answers too. The original's answers and
    predictions are kept for the next evaluation. A command that was stopped continues when you give
    it again.

    \b
    bitquilt eval demo-4.5bit.gguf --against demo
    bitquilt eval ours.gguf theirs.gguf --against facebook/MobileLLM-R1-950M
    bitquilt eval ours.gguf --against demo --wikitext wiki.test.raw

    The figures of each MODEL are also kept beside it, in MODEL.eval.json, for `report` and `card`.
    `bitquilt tasks` measures how many problems a model solves.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_model(config.against)
    from bitquilt.evaluation.compare import evaluate as measure

    keep_freed_memory()
    found = measure(models, config)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    """Print all figures of each file, then what may be concluded."""
    from bitquilt.calibration.text import KINDS
    from bitquilt.runtime.progress import clock

    console = stdout_console()
    for file in found.files:
        _print_file(console, file, found.own)
        _print_check(console, file)
        if file.wikitext is not None:
            _print_wikitext(console, file.name, file.wikitext)
    console.print("", _overview(found))
    kinds = [kind for kind in KINDS if kind in found.own]
    alike = f" on text {kinds[0]} the calibration text" if kinds else ""
    for comparison in found.comparisons:
        console.print(_verdict(comparison, alike), markup=False)
    console.print("About these figures:")
    print_list(console, filter(None, _about(found, kinds)))
    console.print(f"It took {clock(found.seconds)}.")


def _about(found: Evaluation, kinds: Sequence[str]) -> Iterator[str]:
    """Say what the figures are, a sentence or two a line; some lines may be empty.

    Args:
        found: what was measured.
        kinds: the kinds of text that were read.
    """
    from bitquilt.report.figures import answers_read, kinds_note, lacks_documents

    read = [(found.own[kind], f" {kind} bitquilt's calibration text") for kind in kinds]
    tokens = " and ".join(
        f"{one.tokens:,} held-out tokens of {one.documents} documents{which}"
        for one, which in read or [(found.own_overall, "")]
    )
    yield "KL is in nats per token; intervals are 95 %, over documents."
    note = f" {kinds_note(kinds)}" if kinds else ""
    yield f"The figures are over {tokens}.{note}"
    yield answers_read(found.own)
    yield lacks_documents(found.own)
    floors = "; ".join(
        f"{_in_words(floor.kl)} nats/token for {floor.name}, on {floor.tokens:,} tokens"
        for floor in found.floors
    )
    yield (
        f"Even without quantization, engines differ from the original by this KL: {floors}. "
        "Anything below it is noise."
    )
    yield SIZE_NOTE


def _print_file(console: Console, file: FileResult, own: Mapping[str, DomainFigures]) -> None:
    """Print all figures of one file, a line for each kind of text and each domain; where there are
    many domains, they have one table with a few figures, the worst first.
    """
    from bitquilt.evaluation.figures import domains_of
    from bitquilt.report.figures import HEADINGS, kind_label, number

    title = (
        f"{file.name}, {human(file.nbytes)} on disk, {file.bits:.3f} bits per weight "
        f"({file.bits_on_disk:.3f} with everything on disk), in {file.engine}"
    )
    console.print(f"[bold]{title}[/bold]")
    domains = domains_of(file.figures)
    many = domains if len(domains) > MANY else []
    write = figure_cell if _has_intervals(file) else _value_cell  # the list below says why
    for fields in TABLES:
        with_own = "perplexity" in fields  # says little without the original's
        headings = [HEADINGS[field] for field in fields]
        table = figures_table("", [*headings, *["the original's perplexity"] * with_own])
        for name, figures in file.figures.items():
            if name in many:
                continue
            cells = [write(getattr(figures, field), field) for field in fields]
            if with_own:
                cells.append(write(own[name].perplexity, "perplexity"))
            table.add_row(kind_label(name) or name, *cells)
        console.print(table)
    if many:
        few = ("kl", "agreement", "flips", "perplexity_ratio")
        table = figures_table("domain, worst first", [HEADINGS[field] for field in few])
        for name in sorted(many, key=lambda name: -file.figures[name].kl.mean):
            figures = file.figures[name]
            table.add_row(name, *(number(getattr(figures, field).mean, field) for field in few))
        console.print(table)


def _print_wikitext(console: Console, name: str, figures: WikitextFigures) -> None:
    """Print the figures of llama-perplexity's protocol, as the tool names them."""
    from bitquilt.report.wikitext import TOOL_NAMES, confidence_cells, protocol_note, tool_figure

    table = figures_table(name, [figures.text])
    for field, called in TOOL_NAMES.items():
        table.add_row(called, tool_figure(figures, field))
    console.print(table)
    table = figures_table("the original's largest p", ["tokens", "Mean KLD", "Same top p"])
    for one in figures.by_confidence:
        table.add_row(*confidence_cells(one))
    console.print(table)
    console.print(protocol_note(figures), markup=False)


def _has_intervals(file: FileResult) -> bool:
    """Say whether there is text enough for any interval at all."""
    fields = [field for table in TABLES for field in table]
    return any(
        not math.isnan(getattr(figures, field).low)
        for figures in file.figures.values()
        for field in fields
    )


def _value_cell(estimate: Estimate, field: str) -> str:
    """Write a value without its interval."""
    from bitquilt.report.figures import number

    return number(estimate.mean, field)


def _overview(found: Evaluation) -> Table:
    """Make the table of the key figures, with the smallest file first."""
    from bitquilt.calibration.text import KINDS
    from bitquilt.report.figures import HEADINGS, number

    fields = ("kl", "agreement", "perplexity")
    headings = (*SIZE_HEADINGS, *(HEADINGS[field].replace(" top", "\ntop") for field in fields))
    table = figures_table("file", headings, fold_first=True)
    kinds = [kind for kind in KINDS if kind in found.own] or [next(iter(found.own))]
    own = {k: ("", "", number(found.own[k].perplexity.mean, "perplexity")) for k in kinds}
    kind_rows(table, (f"original: {found.original}", "", ""), own)
    for file in sorted(found.files, key=lambda file: file.nbytes):
        about = name_cell(file.name), *size_cells(file.nbytes, file.bits, file.bits_on_disk)
        kind_rows(table, about, {kind: kind_cells(file.figures[kind]) for kind in kinds})
    return table


def _print_check(console: Console, file: FileResult) -> None:
    check = file.check
    more = "no more" if check.agree else "more"
    console.print(
        f"On {check.tokens:,} of the tokens, the file's KL is {check.in_engine.mean:.3g} "
        f"nats/token in its engine and {check.in_torch.mean:.3g} in torch with the same weights. "
        f"The difference, {_in_words(check.apart)}, is {more} than the engine's own arithmetic "
        f"explains, whose KL from torch is {_in_words(check.between)}.",
        markup=False,
    )


def _in_words(estimate: Estimate) -> str:
    """Write an estimate for a sentence, which does not speak of an interval that there is not."""
    return f"{estimate.mean:.3g}" if math.isnan(estimate.low) else str(estimate)


def _verdict(comparison: Comparison, alike: str) -> str:
    """Say which of several files of one size is the closest; ``alike`` names the text."""
    names = " and ".join(comparison.names)
    if any(math.isnan(lead.low) for lead in comparison.ahead):
        return (
            f"{names} have the same size; there are too few documents to tell which is closer to "
            f"the original{alike}."
        )
    if comparison.winner is None:
        return (
            f"{names} have the same size; the intervals do not tell which is closer to the "
            f"original{alike}."
        )
    leads = "; ".join(
        f"{lead} nats/token below that of {name}"
        for name, lead in zip(comparison.names[1:], comparison.ahead, strict=True)
    )
    return (
        f"Of the files of its size, {comparison.winner} is the closest to the original{alike}: "
        f"its KL is {leads}."
    )
