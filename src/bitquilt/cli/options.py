"""Options that several verbs share."""

from __future__ import annotations

import json
from typing import Any

import click

MODEL = click.argument("model")
BITS = click.option(
    "--bits", type=float, help="Bits per weight over all weights, everything in the file counted."
)
SIZE = click.option("--size", help="Or the size of the file, like 600MB or 1.5GiB.")
RECIPE = click.option(
    "--recipe",
    metavar="FILE|PRESET",
    help="A recipe file or a preset (Q4_K_M, 4bit-g64 …). With a budget, a file's pins hold.",
)
TO = click.option(
    "--to",
    type=click.Choice(["gguf", "mlx", "both"]),
    default="gguf",
    show_default=True,
    help="What to write.",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."
)


def print_json(content: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))
