"""``bitquilt recipe``: recipes from files that anybody made, for other tools, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitquilt.cli.options import JSON, print_json, require_model
from bitquilt.errors import UserError
from bitquilt.evaluation.file_format import format_of
from bitquilt.gguf import SUFFIX
from bitquilt.runtime.files import atomic_write, refuse_directory

if TYPE_CHECKING:
    from bitquilt.models.checkpoint import Checkpoint

FORM_NAMES = ("tensor-type-file", "custom-q", "mlx-lm")


@click.command()
@click.argument("action", type=click.Choice(("from", "export", "diff")))
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(
    "--for",
    "model",
    metavar="MODEL",
    help="The recipe is for this model. What does not fit the model is replaced or left out, and a "
    "line tells you what.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(FORM_NAMES),
    default=FORM_NAMES[0],
    show_default=True,
    help="The form that `export` writes: a file of tensor types for llama-quantize, the custom-q "
    "of ik_llama.cpp, or JSON for the quant_predicate of mlx-lm.",
)
@click.option("-o", "--output", metavar="FILE", help="The result is written to this file.")
@JSON
def recipe(
    action: str,
    files: tuple[str, ...],
    model: str | None,
    form: str,
    output: str | None,
    as_json: bool,
) -> None:
    """Take a recipe from a model file, export one, or compare two.

    FILE is a GGUF file or an MLX directory, from any tool. For `export` and `diff` it may also be a
    recipe; then --for must name the model.

    \b
    bitquilt recipe from theirs-UD-Q4_K_XL.gguf -o theirs.json
    bitquilt recipe from theirs-UD-Q4_K_XL.gguf --for Qwen/Qwen3-0.6B -o theirs.json
    bitquilt recipe export mine.json --for demo --as tensor-type-file -o types.txt
    bitquilt recipe diff theirs.gguf demo-4.5bit.gguf
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    wanted = 2 if action == "diff" else 1
    if len(files) != wanted:
        takes = "two files" if wanted == 2 else "one file"
        raise UserError(
            f"`bitquilt recipe {action}` takes {takes}, not {len(files)}; see bitquilt recipe "
            "--help"
        )
    if output is not None:
        refuse_directory(Path(output))
    paths = [Path(file) for file in files]
    for path in paths:
        if not path.exists():
            format_of(path)
        elif path.suffix == SUFFIX or action == "from":
            format_of(path).refuse_damaged(path)
    if model is not None:
        require_model(model)
    from bitquilt.models import open_checkpoint

    checkpoint = None if model is None else open_checkpoint(model)
    if action == "from":
        text, found = _taken(paths[0], checkpoint)
    elif action == "export":
        text, found = _exported(paths[0], checkpoint, form)
    else:
        text, found = _different(paths, checkpoint)
    if output is not None:
        with atomic_write(Path(output)) as beside:
            beside.write_text(text, encoding="utf-8")
        click.echo(output, err=as_json)
    if as_json:
        print_json(found)
    elif output is None:
        click.echo(text, nl=False)


def _taken(path: Path, checkpoint: Checkpoint | None) -> tuple[str, dict[str, Any]]:
    """Make a recipe of a file's types, and say what did not fit."""
    import json

    from bitquilt.allocation.stored_mix import stored_mix, taken_recipe

    taken = taken_recipe(stored_mix(path), checkpoint)
    for note in taken.notes:
        click.echo(note, err=True)
    content = json.loads(taken.recipe.to_json())
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return text, {"recipe": content, "notes": list(taken.notes)}


def _exported(path: Path, checkpoint: Checkpoint | None, form: str) -> tuple[str, dict[str, Any]]:
    """Write a mix as another tool takes it, and say how that tool is told."""
    from bitquilt.allocation.recipe_export import FORMS, exported
    from bitquilt.allocation.stored_mix import allocation_of

    allocation = allocation_of(path, checkpoint, FORMS[form].target)
    text = exported(allocation, form)
    click.echo(f"use it as: {FORMS[form].use}", err=True)
    return text, {"form": form, "text": text, "use": FORMS[form].use}


def _different(paths: list[Path], checkpoint: Checkpoint | None) -> tuple[str, dict[str, Any]]:
    """List the matrices whose types differ."""
    from bitquilt.allocation.stored_mix import types_by_module

    one, other = (types_by_module(path, checkpoint) for path in paths)
    if one.keys().isdisjoint(other):
        raise UserError(
            f"{paths[0]} and {paths[1]} name no matrix alike: they are of other models, or of a "
            "family of which bitquilt does not know how formats name its matrices; give two files "
            "of one format"
        )
    modules = dict.fromkeys([*one, *other])
    found = {m: [one.get(m), other.get(m)] for m in modules if one.get(m) != other.get(m)}
    return _listed(found, len(modules)), {"matrices": len(modules), "different": found}


def _listed(found: Mapping[str, list[str | None]], matrices: int) -> str:
    lines = [f"{len(found)} of {matrices} matrices have other types"]
    width = max(map(len, found), default=0)
    lines += [
        f"{module:{width}}  {before or 'none'} → {after or 'none'}"
        for module, (before, after) in found.items()
    ]
    return "\n".join(lines) + "\n"
