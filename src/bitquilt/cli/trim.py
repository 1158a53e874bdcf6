"""``bitquilt trim``: a model with only the tokens that somebody's text needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, MODEL, config_options, show
from bitquilt.cli.tables import figures_table, stdout_console
from bitquilt.runtime.malloc import keep_freed_memory
from bitquilt.trimming.config import TrimConfig

if TYPE_CHECKING:
    from bitquilt.trimming.trim import TrimResult


@click.command("trim")
@MODEL
@config_options(TrimConfig)
@JSON
def trim_model(model: str, config: TrimConfig, as_json: bool) -> None:
    """Write MODEL with only the tokens that some text needs.

    The embedding of a small model may be most of its weights. The result is a Hugging Face
    checkpoint, which every other command takes as MODEL.

    \b
    bitquilt trim google/gemma-3-270m --languages en --tokens 64k -o gemma-en
    bitquilt trim demo --keep mine.txt -o demo-trimmed
    bitquilt quantize demo-trimmed --bits 4.5

    Every byte and every control token in use is kept, so the smaller model can still read any text.
    Text that needs a removed token is split into more tokens. The logits of kept tokens are the
    original's.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.runtime.records import to_json
    from bitquilt.trimming.trim import trim_vocabulary

    keep_freed_memory()
    show(lambda: trim_vocabulary(model, config), to_json, _print, as_json)


def _print(made: TrimResult) -> None:
    console = stdout_console()
    table = figures_table("", ["before", "after"])
    table.add_row("tokens", f"{made.tokens_before:,}", f"{made.tokens:,}")
    table.add_row("weights", f"{made.weights_before:,}", f"{made.weights:,}")
    for one in made.tokens_per_byte:
        table.add_row(f"tokens per byte, {one.text}", f"{one.before:.4f}", f"{one.after:.4f}")
    console.print(table)
    console.print(
        f"The text has {made.needed:,} different tokens. Those that {made.path} keeps make up "
        f"{made.covered:.2%} of the text. Do not compare perplexity or KL per token across "
        "vocabularies; compare bits per byte.",
        markup=False,
    )
