"""Write docs/cli.md, the reference of the command line, from the commands themselves.

With ``--check``, as ``make lint`` calls it, write nothing and fail if the page is an old one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bitquilt.cli.main import bitquilt

PAGE = Path(__file__).parents[1] / "cli.md"
RENEW = "make format"

HEAD = """\
# The command line

Every verb, its arguments and its options, as `bitquilt VERB --help` prints them. This page is
written by `docs/scripts/cli.py`; `{renew}` renews it.

{verbs}
"""


def reference(group: click.Group) -> str:
    """The page: a list of the verbs, then a section for each."""
    parent = click.Context(group, info_name="bitquilt", **group.context_settings)
    verbs = "\n".join(
        f"- [`bitquilt {name}`](#{name}): {command.get_short_help_str(limit=200)}"
        for name, command in group.commands.items()
    )
    sections = [
        section(click.Context(command, info_name=name, parent=parent))
        for name, command in group.commands.items()
    ]
    return HEAD.format(renew=RENEW, verbs=verbs) + "\n".join(["", *sections])


def section(context: click.Context) -> str:
    """One verb: its usage, its description, and its options."""
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [p.get_help_record(context) for p in command.params]
    options = "\n".join(f"- `{r[0]}`: {plain(r[1])}" for r in records if r and r[1])
    return f"## {context.info_name}\n\n    {usage}\n\n{prose(command.help or '')}\n\n{options}\n"


def prose(text: str) -> str:
    """A command's description; click marks blocks that keep their lines with a backspace."""
    return "\n\n".join(
        "\n".join("    " + line.strip() for line in block.strip().split("\n")[1:])
        if "\b" in block
        else plain(block)
        for block in text.strip().split("\n\n")
    )


def plain(text: str) -> str:
    """One line, in which Markdown takes nothing for HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def main() -> int:
    """Write the page, or compare it."""
    text = reference(bitquilt)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"docs/cli.md is not what bitquilt --help says; renew it with: {RENEW}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
