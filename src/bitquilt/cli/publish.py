"""``bitquilt publish``: a quantized model to the hub, on the original's terms."""

from __future__ import annotations

import click

from bitquilt.cli.options import JSON, MODEL_FILES, config_options, print_json, require_model
from bitquilt.report.config import PublishConfig
from bitquilt.runtime.sizes import human


class _Publish(click.Command):
    """Says how to publish nothing to who knows that by the option of other tools."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--dry-run" in args:
            raise click.UsageError(
                "without --upload, publish only says what it would do: it needs no dry run", ctx
            )
        return super().parse_args(ctx, args)


@click.command(cls=_Publish)
@MODEL_FILES
@config_options(PublishConfig)
@JSON
def publish(models: tuple[str, ...], config: PublishConfig, as_json: bool) -> None:
    """Upload MODEL to the hub with everything that belongs to it.

    Its card, recipe, evaluation, Modelfile, and the original's licence belong to it. Without
    --upload, nothing leaves this machine. If an upload is stopped, give the same command again to
    continue. To log in, use `hf auth login` or set HF_TOKEN.

    \b
    bitquilt publish demo-4.5bit.gguf --against demo --repo me/demo-GGUF
    bitquilt publish demo-4.5bit.gguf --against demo --repo me/demo-GGUF --upload
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    require_model(config.against)
    from bitquilt.report import publish as hub
    from bitquilt.runtime.progress import Progress

    model = hub.publication(models, config)
    hub.require_licence(model)
    listed = {entry.name: entry.nbytes for entry in hub.entries(model)}
    address = hub.upload(model, Progress(), private=config.private) if config.upload else None
    if as_json:
        said = {"repo": model.repository, "gate": model.gate, "files": listed}
        terms = {**model.origin.terms.stated, "stated_in": model.origin.terms.stated_in}
        print_json(
            {**said, "licence": terms, "not_measured": model.not_measured, "uploaded": address}
        )
        return
    for name, nbytes in listed.items():
        click.echo(f"{human(nbytes):>10}  {name}")
    for sentence in hub.terms_said(model):
        click.echo(sentence)
    for name in model.not_measured:
        click.echo(
            f"{name} was not measured against {config.against}, so the card has no figures for "
            "it; `bitquilt eval` measures it."
        )
    gate = f", gated ({model.gate}) as the original is" if model.gate else ""
    if address:
        click.echo(f"Published at {address}{gate}.")
    else:
        kind = "private repository" if config.private else "repository"
        click.echo(
            f"This would go to the {kind} {model.repository}{gate}; to upload it, add --upload."
        )
