"""``bitquilt clean``: what bitquilt left on the disk, listed, and removed if you agree."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitquilt.cli.options import JSON, print_json
from bitquilt.runtime.sizes import human

if TYPE_CHECKING:
    from bitquilt.runtime.leftovers import Leftover

BESIDE = (".recipe.json", ".eval.json")
"""How the names of files end that are written beside a model."""


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--yes", is_flag=True, help="Everything that is listed is removed, without a question."
)
@JSON
def clean(directory: Path | None, yes: bool, as_json: bool) -> None:
    """List what bitquilt left on the disk, and remove it if you agree.

    `clean` looks in DIR and up to two folders below it for work directories, for models that
    `quantize --trim` trimmed, and for half-written files of runs that were killed. Without DIR, it
    looks in the current directory, and also in your cache for what `eval` keeps about originals and
    for rebuilt tokenizers. If you remove a work directory, further files of its model take longer
    to make. Models, recipes, figures, and files that bitquilt did not write stay.

    \b
    bitquilt clean
    bitquilt clean demo.work --yes
    """  # noqa: D301 (click's mark for lines to keep is the character itself)
    from bitquilt.runtime.leftovers import find_leftovers, remove_leftover
    from bitquilt.targets import TARGETS

    outputs = [*(target.suffix for target in TARGETS.values()), *BESIDE]
    found = find_leftovers(directory, outputs)
    free = [one for one in found if not one.in_use]
    if as_json:
        freed = sum(map(remove_leftover, free)) if yes else 0
        print_json({"found": [one.to_dict() for one in found], "freed": freed})
        return
    _list(found, directory)
    if free and (yes or _agreed(free)):
        click.echo(f"{human(sum(map(remove_leftover, free)))} freed.")


def work_dir_told(path: Path) -> str:
    """Say where a work directory is, how large, and how it is removed."""
    from bitquilt.runtime.leftovers import directory_bytes

    return (
        f"The work directory {path} takes {human(directory_bytes(path))}; with it, further files "
        f"of this model take less time. To remove it: bitquilt clean {shlex.quote(str(path))}"
    )


def _list(found: list[Leftover], directory: Path | None) -> None:
    if not found:
        where = "two folders below it" if directory else "two folders below it, and in the cache"
        click.echo(f"bitquilt left nothing in {directory or Path.cwd()}, up to {where}.")
    for one in found:
        used = "; a run is using it, so it stays" if one.in_use else ""
        age = _age(one.seconds)
        click.echo(f"{human(one.nbytes):>10}  {one.path}: {one.kind}, last written {age} ago{used}")
        for path in one.foreign:
            click.echo(f"{'':>10}  {path} is not bitquilt's, so it stays")


def _agreed(free: list[Leftover]) -> bool:
    """Ask; where nobody can answer, say how to go on."""
    size = human(sum(one.nbytes for one in free))
    if not sys.stdin.isatty():
        click.echo(f"Nothing was removed; --yes removes these {size}.")
        return False
    return click.confirm(f"Remove these {size}?")


def _age(seconds: float) -> str:
    """Say a time in its largest unit."""
    units = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
    length, unit = next((one for one in units if seconds >= one[0]), units[-1])
    count = int(seconds // length)
    return f"{count} {unit}{'' if count == 1 else 's'}"
