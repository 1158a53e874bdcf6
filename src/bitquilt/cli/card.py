"""``bitquilt card``: the README of a quantized model, and the Modelfile that Ollama needs."""

from __future__ import annotations

from pathlib import Path

import click

from bitquilt.cli.options import JSON, MODEL_FILES, config_options, print_json, require_model
from bitquilt.report.config import CardConfig
from bitquilt.runtime.files import atomic_write


@click.command()
@MODEL_FILES
@config_options(CardConfig)
@JSON
def card(models: tuple[str, ...], config: CardConfig, as_json: bool) -> None:
    """Print the model card of a quantized MODEL.

    MODEL is one or more GGUF files, or one MLX directory. The card repeats the original's licence
    and gate. It shows the figures that `bitquilt eval` left beside each MODEL, or else those that
    `bitquilt quantize` left in its work directory. With -o you also get the licence's text and, for
    Ollama, a Modelfile for every GGUF file.

    \b
    bitquilt card demo-4.5bit.gguf --against demo --repo me/demo-GGUF
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_model(config.against)
    from bitquilt.report import card as cards
    from bitquilt.report import publish

    model = publish.publication(models, config)
    written = {"README.md": cards.model_card(model), **cards.modelfiles(model)}
    if as_json:
        print_json(written)
    elif config.output is None:
        click.echo(written["README.md"])
    contents = {name: text.encode() for name, text in written.items()}
    contents |= model.origin.terms.documents()
    for name, content in contents.items() if config.output else ():
        path = Path(config.output or "") / name
        with atomic_write(path) as beside:
            beside.write_bytes(content)
        click.echo(str(path), err=as_json)
