"""The command line. Verbs are thin; what they need is imported when they run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from bitquilt import __version__
from bitquilt.cli.bench import bench
from bitquilt.cli.card import card
from bitquilt.cli.chat import chat
from bitquilt.cli.eval import evaluate
from bitquilt.cli.inspect import inspect
from bitquilt.cli.plan import plan
from bitquilt.cli.publish import publish
from bitquilt.cli.quantize import quantize
from bitquilt.cli.report import report
from bitquilt.cli.run import run
from bitquilt.cli.search import search
from bitquilt.cli.serve import serve
from bitquilt.cli.tasks import tasks
from bitquilt.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where there is no room."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bitquilt")
def bitquilt() -> None:
    """Mixed-precision GGUF and MLX models of an exact size, running in stock engines.

    MODEL is a hub id, a Hugging Face directory, a GGUF file, or `demo`, the small reasoning model
    that comes with the package.
    """


for verb in (
    quantize,
    search,
    plan,
    inspect,
    run,
    chat,
    serve,
    evaluate,
    tasks,
    bench,
    report,
    card,
    publish,
):
    bitquilt.add_command(verb)


def main(arguments: Sequence[str] | None = None, **beside: Any) -> None:
    """Run the command line; bad input is one sentence and exit code 2.

    Args:
        arguments: the words after ``bitquilt``; those of this process if not given.
        beside: fields of configs; they hold where the command line says nothing.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    # what transformers warns of, `inspect` explains
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        bitquilt(args=words, prog_name="bitquilt", standalone_mode=False, obj=beside)
    except UserError as error:
        _leave(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        verb = error.ctx.command_path if error.ctx else "bitquilt"
        _leave(f"{error.format_message().rstrip('.')}; see {verb} --help", 2)
    except (KeyboardInterrupt, click.Abort):
        _leave("stopped" + _going_on(words), 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; there is nobody to tell
        sys.exit(141)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "the output"
        with suppress(OSError):
            sys.stdout.close()  # else Python tries again at its end
        _leave(f"{where} cannot be written: {error.strerror}; make room and try again", 2)


def _going_on(arguments: Sequence[str]) -> str:
    """What to expect of the same command, where it keeps what it did."""
    kept = {"quantize", "search", "eval", "publish"} & set(arguments[:1])
    return "; the same command continues where it was" if kept else ""


def _leave(sentence: str, code: int) -> None:
    click.echo(f"bitquilt: {sentence}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
