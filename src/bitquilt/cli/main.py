"""The command line. Verbs are thin; what they need is imported when they run."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from typing import Any

import click

from bitquilt import __version__
from bitquilt.cli.bench import bench
from bitquilt.cli.card import card
from bitquilt.cli.chat import chat
from bitquilt.cli.clean import clean
from bitquilt.cli.compare import compare_files
from bitquilt.cli.eval import evaluate
from bitquilt.cli.imatrix import imatrix
from bitquilt.cli.inspect import inspect
from bitquilt.cli.options import error_object, options_of, print_json, printable
from bitquilt.cli.pair import pair
from bitquilt.cli.plan import plan
from bitquilt.cli.publish import publish
from bitquilt.cli.quantize import quantize
from bitquilt.cli.recipe import recipe
from bitquilt.cli.report import report
from bitquilt.cli.run import run
from bitquilt.cli.search import search
from bitquilt.cli.serve import serve
from bitquilt.cli.tasks import tasks
from bitquilt.cli.trim import trim_model
from bitquilt.cli.unknown_family import advised
from bitquilt.errors import (
    PartlyRefusedError,
    UnknownFamilyError,
    UserError,
    in_shell,
    named_by,
    worded,
)
from bitquilt.runtime.files import no_permission
from bitquilt.runtime.load import wait_asleep_if_busy
from bitquilt.runtime.quiet import quiet

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says where there is no room."""
SHOWN_OF_LONG = 60
"""Letters of a name that is too long for a file."""


SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="bitquilt")
def bitquilt() -> None:
    """Make mixed-precision GGUF and MLX models of an exact size, which stock engines run.

    MODEL is a hub id, a Hugging Face directory, a GGUF file, or `demo`, the small reasoning model
    that comes with the package.
    """


for verb in (
    quantize,
    search,
    plan,
    recipe,
    imatrix,
    trim_model,
    inspect,
    run,
    chat,
    serve,
    evaluate,
    compare_files,
    tasks,
    bench,
    pair,
    report,
    card,
    publish,
    clean,
):
    bitquilt.add_command(verb)


def main(arguments: Sequence[str] | None = None, **beside: Any) -> None:
    """Run the command line; bad input is one sentence and exit code 2.

    Args:
        arguments: the words after ``bitquilt``; those of this process if not given.
        beside: fields of configs; they hold where the command line says nothing.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    verb = bitquilt.commands.get(words[0]) if words else None
    quiet()
    wait_asleep_if_busy()
    with named_by(partial(_named, verb)), _raising_sigterm():
        _run(words, partial(_leave, as_json=_wants_json(verb, words)), beside)


class _TerminatedError(BaseException):
    """SIGTERM came. Unlike Ctrl-C, it never ends a search or an answer only."""


@contextmanager
def _raising_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, so that nothing is left half-written."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # whoever called us has other plans
        return

    def stop(*_: object) -> None:
        raise _TerminatedError

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _require_once(words: Sequence[str]) -> None:
    """Refuse an option that is given twice: only the last would count, and nobody would be told.

    Raises:
        UserError: one is.
    """
    verb = bitquilt.commands.get(words[0]) if words else None
    if verb is None or isinstance(verb, click.Group):
        return
    try:
        _, _, order = verb.make_parser(click.Context(verb, **SETTINGS)).parse_args(list(words[1:]))
    except click.UsageError:
        return  # click will say it
    for one, times in Counter(map(id, order)).items():
        option = next(param for param in order if id(param) == one)
        if not isinstance(option, click.Option) or option.multiple or option.is_flag or times == 1:
            continue
        several = "[," in (option.metavar or "")
        advice = "put several into one list, with commas between" if several else "give it once"
        raise UserError(f"{option.opts[-1]} is given {times} times; {advice}")


def _run(words: list[str], leave: Callable[[str, int], None], beside: dict[str, Any]) -> None:
    """Run a command; errors that are no bugs end the process with a sentence."""
    try:
        _require_once(words)
        bitquilt(args=words, prog_name="bitquilt", standalone_mode=False, obj=beside)
    except PartlyRefusedError as error:
        _leave(str(error), 2, as_json=False)  # the verb has printed the object
    except UnknownFamilyError as error:
        leave(worded(advised(error, words[0])), 2)
    except UserError as error:
        leave(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        leave(_usage(error), 2)
    except (KeyboardInterrupt, click.Abort):
        leave("stopped" + _going_on(words), 130)
    except _TerminatedError:
        leave("stopped by SIGTERM" + _going_on(words), 128 + signal.SIGTERM)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; there is nobody to tell
        sys.exit(141)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            start = str(error.filename)[:SHOWN_OF_LONG]
            leave(f"{start}… is longer than the name of a file can be; check the path", 2)
        if isinstance(error, PermissionError) and error.filename:
            leave(no_permission(error.filename), 2)
        if error.errno not in FULL:
            raise
        where = error.filename or "the output"
        with suppress(OSError):
            sys.stdout.close()  # else Python tries again at its end
        leave(f"{where} cannot be written: {error.strerror}; make room and try again", 2)


def _usage(error: click.UsageError) -> str:
    """The sentence of wrong use, and where to read more."""
    said = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption) and (others := _having(error.option_name)):
        said = f"No such option '{error.option_name}' here, but `bitquilt {others[0].name}` has it"
    more = f"see {error.ctx.command_path if error.ctx else 'bitquilt'} --help"
    return f"{said} {more.capitalize()}" if said.endswith("?") else f"{said}; {more}"


def _named(verb: click.Command | None, flag: str, value: str | None) -> str:
    """Name an option in an error of a verb: that of another verb by its whole command."""
    said = in_shell(flag, value)
    having = _having(flag)
    if verb in having or verb is None or not having:
        return said
    return f"`bitquilt {having[0].name} {said}`"


def _having(flag: str) -> list[click.Command]:
    """The verbs that have an option."""
    return [verb for verb in bitquilt.commands.values() if flag in options_of(verb)]


def _wants_json(verb: click.Command | None, words: Sequence[str]) -> bool:
    """Tell whether ``--json`` was given to a verb that has it."""
    given = takewhile(lambda word: word != "--", words)
    return verb is not None and "--json" in options_of(verb) and "--json" in given


def _going_on(arguments: Sequence[str]) -> str:
    """What to expect of the same command, where it keeps what it did."""
    kept = {"quantize", "search", "eval", "publish"} & set(arguments[:1])
    return "; the same command continues where it stopped" if kept else ""


def _leave(sentence: str, code: int, as_json: bool) -> None:
    if as_json and not sys.stdout.closed:
        print_json(error_object(sentence, code))
    click.echo(f"bitquilt: {printable(sentence)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
