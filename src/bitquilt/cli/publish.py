"""``bitquilt publish``: a quantized model to the hub, on the original's terms."""

from __future__ import annotations

import click

from bitquilt.allocation.budget import human
from bitquilt.cli.card import AGAINST, BASE_MODEL, FILES, REPOSITORY
from bitquilt.cli.options import JSON, print_json


@click.command()
@FILES
@AGAINST
@REPOSITORY
@BASE_MODEL
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--upload", is_flag=True, help="Upload; without this, only list what would be uploaded."
)
@JSON
def publish(
    models: tuple[str, ...],
    against: str,
    repo: str,
    base_model: str | None,
    private: bool,
    upload: bool,
    as_json: bool,
) -> None:
    """Upload MODEL to the hub with everything that belongs to it.

    That is its card, recipe, evaluation, Modelfile, and the original's licence. Without --upload
    nothing leaves this machine. An upload that was stopped continues with the same command. The
    token is the one of `hf auth login`, or HF_TOKEN.

    \b
    bitquilt publish demo-4.5bit.gguf --against demo --repo me/demo-GGUF
    bitquilt publish demo-4.5bit.gguf --against demo --repo me/demo-GGUF --upload
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.report import publish as hub
    from bitquilt.runtime.progress import Progress

    model = hub.publication(models, against, repo, base_model)
    hub.require_licence(model)
    listed = {entry.name: entry.nbytes for entry in hub.entries(model)}
    address = hub.upload(model, Progress(), private=private) if upload else None
    if as_json:
        print_json({"repo": repo, "gate": model.gate, "files": listed, "uploaded": address})
        return
    for name, nbytes in listed.items():
        click.echo(f"{human(nbytes):>10}  {name}")
    gate = f", gated ({model.gate}) as the original is" if model.gate else ""
    if address:
        click.echo(f"Published at {address}{gate}.")
    else:
        kind = "private repository " if private else ""
        click.echo(f"This would go to the {kind}{repo}{gate}; add --upload to do it.")
