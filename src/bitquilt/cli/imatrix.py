"""``bitquilt imatrix``: an importance matrix for any tool that takes llama.cpp's."""

from __future__ import annotations

from pathlib import Path

import click

from bitquilt.cli.options import JSON, MODEL, config_options, show
from bitquilt.config import ImatrixConfig
from bitquilt.runtime.files import refuse_directory
from bitquilt.runtime.malloc import keep_freed_memory


@click.command()
@MODEL
@config_options(ImatrixConfig)
@JSON
def imatrix(model: str, config: ImatrixConfig, as_json: bool) -> None:
    """Measure the importance matrix of MODEL and write it to a file.

    \b
    bitquilt imatrix demo
    bitquilt imatrix Qwen/Qwen3-0.6B --calibration mine.txt -o qwen3.gguf

    The importance matrix tells how strongly MODEL uses each column of its weight matrices. Files
    of `bitquilt imatrix` and of llama-imatrix have the same format: llama-quantize and
    `bitquilt quantize --imatrix` take both.
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    path = Path(config.output)
    refuse_directory(path)
    from bitquilt.streaming import make_imatrix

    keep_freed_memory()
    show(
        lambda: make_imatrix.make_imatrix(model, config),
        lambda made: {
            "path": str(path),
            "entries": len(made.entries),
            "tokens": made.chunks * made.chunk_size,
        },
        lambda made: click.echo(
            f"{path}: importance of {len(made.entries)} matrices, from "
            f"{made.chunks * made.chunk_size:,} tokens"
        ),
        as_json,
    )
