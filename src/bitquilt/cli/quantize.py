"""``bitquilt quantize``: one model file of an exact size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from bitquilt.cli.clean import work_dir_told
from bitquilt.cli.options import JSON, MODEL, config_options, require_place, require_possible, show
from bitquilt.cli.tables import (
    SIZE_HEADINGS,
    SIZE_NOTE,
    figures_table,
    kind_cells,
    kind_rows,
    name_cell,
    print_list,
    size_cells,
    stdout_console,
)
from bitquilt.config import QuantizeConfig
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.runtime.sizes import human

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from bitquilt.converted.quantize_base import ConvertedResult
    from bitquilt.metrics.teacher import Figures
    from bitquilt.report.result import QuantizeResult
    from bitquilt.streaming.quantize_gguf import GgufResult


@click.command()
@MODEL
@config_options(QuantizeConfig)
@JSON
def quantize(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Quantize MODEL to an exact size and measure what it loses.

    \b
    bitquilt quantize demo --bits 4.5
    bitquilt quantize facebook/MobileLLM-R1-950M --size 600MB --to gguf
    bitquilt quantize demo --bits 3,3.5,4,4.5,5 --to both
    bitquilt quantize ./my-model --recipe Q4_K_M --to gguf
    bitquilt quantize google/gemma-3-270m --trim en,64k --bits 4.5
    bitquilt quantize model-BF16.gguf --imatrix imatrix.gguf --size 20GB
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_possible(config)
    require_place(model, config)
    if config.imatrix is not None:
        _quantize_gguf(model, config, as_json)
        return
    if config.base is not None or _needs_base(model):
        _quantize_base(model, config, as_json)
        return
    from bitquilt import pipeline

    keep_freed_memory()
    show(
        lambda: pipeline.quantize(model, config),
        lambda result: result.to_dict(),
        _print_table,
        as_json,
    )


def _quantize_gguf(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Quantize a GGUF file as a stream; neither torch nor the model is loaded for it."""
    from bitquilt.streaming.quantize_gguf import quantize_gguf

    show(
        lambda: quantize_gguf(model, config),
        lambda made: {"outputs": [one.to_dict() for one in made]},
        _print_streamed,
        as_json,
    )


def _needs_base(model: str) -> bool:
    from bitquilt.streaming.base import needs_base

    return needs_base(model)


def _quantize_base(model: str, config: QuantizeConfig, as_json: bool) -> None:
    """Quantize a model that bitquilt has no tables of."""
    from bitquilt.base_pipeline import quantize_base

    keep_freed_memory()
    show(
        lambda: quantize_base(model, config),
        lambda made: {"outputs": [one.to_dict() for one in made]},
        _print_converted,
        as_json,
    )


def _print_converted(made: list[ConvertedResult]) -> None:
    from rich.text import Text

    _print_files(made)
    original = made[0].original
    if original is None:
        return  # why was said
    console = stdout_console()
    table = _figures_begun(Text("original"), original.kinds, ("size", "bits"))
    for one in made:
        assert one.figures is not None
        bits = f"{one.plan.bits:.3f}"
        name = Text(name_cell(one.paths[0].name))
        cells = {kind: kind_cells(own) for kind, own in one.figures.kinds.items()}
        kind_rows(table, (name, human(one.plan.nbytes), bits), cells)
    console.print(table)
    console.print("About these figures:")
    print_list(
        console,
        [
            *_about_figures(original.kinds),
            "Bits are per weight of the tensors.",
        ],
    )


def _print_streamed(made: list[GgufResult]) -> None:
    _print_files(made)
    first, against = made[0].paths[0], made[0].source
    click.echo(
        f"Nothing was measured; `bitquilt eval {first} --against MODEL` does, where MODEL is the "
        f"Hugging Face model of {against}, or {against} itself in families that bitquilt knows."
    )


def _print_files(made: Sequence[GgufResult]) -> None:
    for one in made:
        plan = one.plan
        said = f"{', '.join(map(str, one.paths))}: {plan.nbytes:,} bytes, {plan.bits:.3f} bits per "
        said += f"weight; rounded and written in {one.seconds:.0f} s"
        if plan.predicted_kl is not None:
            said += f"; the predicted KL is {plan.predicted_kl:.3g} nats/token"
        click.echo(said)


def _print_table(result: QuantizeResult) -> None:
    """Print the key figure of each file, the closing table, what it means, and what is left."""
    from bitquilt.report.figures import number
    from bitquilt.runtime.progress import clock

    console = stdout_console()
    for output in result.outputs:
        kl = number(output.figures.headline.kl.mean, "kl")
        size = human(output.nbytes)
        console.print(f"{output.path}: {size}, KL {kl} nats/token from the original", markup=False)
    if result.vision is not None:
        size = human(result.vision.stat().st_size)
        console.print(f"{result.vision}: {size}, the vision tower, not quantized", markup=False)
    console.print(_closing_table(result))
    console.print("About these figures:")
    print_list(console, [*_about_figures(result.original.kinds), SIZE_NOTE])
    console.print("The files in their engines:")
    print_list(console, [f"{output.path.name}: {output.note}." for output in result.outputs])
    took, in_all = clock(result.seconds), clock(result.seconds_in_all)
    if result.seconds_in_all > result.seconds + 1 and in_all != took:
        took += f", and {in_all} in all runs with this work directory"
    console.print(f"It took {took}.", markup=False)
    console.print(work_dir_told(result.work_dir), markup=False)


def _closing_table(result: QuantizeResult) -> Table:
    """Make a row for the original and for each file, with rows of figures for each kind of text."""
    from rich.text import Text

    stored_as = (f"\nstored as {result.stored_as}", "dim")
    original = Text.assemble("original:\n", name_cell(result.model), stored_as)
    table = _figures_begun(original, result.original.kinds)
    for output in result.outputs:
        name = Text.assemble(name_cell(output.path.name), (f"\ntypes: {output.source}", "dim"))
        size = size_cells(output.nbytes, output.bits, output.bits_on_disk)
        cells = {kind: kind_cells(one) for kind, one in output.figures.kinds.items()}
        kind_rows(table, (name, *size), cells)
    return table


def _figures_begun(
    original: Text, own: Mapping[str, Figures], sizes: tuple[str, str] = SIZE_HEADINGS
) -> Table:
    """Begin the table with the original, of which there is the perplexity alone.

    Args:
        original: what is in its first cell.
        own: the kind of text → its figures.
        sizes: the headings of a file's size and its bits.
    """
    from bitquilt.report.figures import number

    table = figures_table(
        "file", (*sizes, "KL,\nnats/token", "same\ntop-1", "perplexity"), fold_first=True
    )
    only = {k: ("", "", number(one.perplexity.mean, "perplexity")) for k, one in own.items()}
    kind_rows(table, (original, "", ""), only)
    return table


def _about_figures(own: Mapping[str, Figures]) -> Iterator[str]:
    """Say what the closing table's figures are, a sentence a line.

    Args:
        own: the kind of text → figures of the original on it.
    """
    from bitquilt.metrics.intervals import too_few
    from bitquilt.report.figures import kinds_note

    intervals = "Intervals are 95 %, over documents"
    if few := [one for one in own.values() if math.isnan(one.agreement.low)]:
        said = too_few(few[0].documents)
        intervals = f"{said[0].upper()}{said[1:]}; `bitquilt eval` reads more of them"
    yield f"KL and top-1 are against the original. {intervals}."
    yield "They were computed by torch, on the weights read back from each file."
    read = " and ".join(
        f"{one.tokens:,} tokens of {one.documents} documents {kind} the calibration text"
        for kind, one in own.items()
    )
    yield f"The text is held out: {read}. {kinds_note(own)}".rstrip()
    yield (
        "This is the closing KL. Do not compare it with a selection KL, which is of a mix before "
        "it was polished, or with an excerpt KL, which is of a part of the text."
    )
