"""The one exception that a user is meant to read, and how it names options to its reader.

Sentences name options as the command line does, and write values behind ``=``: ``--bits=4.5``. The
reader may be at a shell, in Python, or a program at the other end of HTTP. So whoever prints a
sentence puts in what its reader can type, by :func:`worded`. What stands in backticks is left as it
is: it is a whole command, for a shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Naming = Callable[[str, str | None], str]
"""(option of the command line, its value or None) → what a reader can type."""

SHOWN = 60
"""So many letters of a value stand in a sentence."""
KEYWORDS: dict[str, str] = {}
"""Option of the command line → the field of a config that it is in Python; configs fill this in."""

_OPTION = re.compile(r"`[^`]*`|(?<![\w-])(--[a-z]+(?:-[a-z]+)*)(?:=(-?[\w.+]*\w))?")


def in_python(flag: str, value: str | None) -> str:
    """Name an option as a keyword argument: ``bits=4.5``, ``SearchConfig(method="race")``."""
    field = KEYWORDS.get(flag)
    if field is None:
        return in_shell(flag, value)
    if value is None:
        return field
    owner, dot, name = field.rpartition(".")
    said = f"{name}={value if _is_number(value) else repr(value)}"
    return f"{owner}({said})" if dot else said


def in_shell(flag: str, value: str | None) -> str:
    """Name an option as people type it: ``--bits 4.5``."""
    return flag if value is None else f"{flag} {value}"


_naming: ContextVar[Naming] = ContextVar("naming", default=in_python)


@contextmanager
def named_by(naming: Naming) -> Iterator[None]:
    """Name options in this way while the block runs."""
    token = _naming.set(naming)
    try:
        yield
    finally:
        _naming.reset(token)


def worded(sentence: str, naming: Naming | None = None) -> str:
    """Return a sentence with its options as its reader can type them.

    Args:
        sentence: names options like ``--work-dir``, and ``--bits=4.5`` with a value.
        naming: how; that of :func:`named_by` if not given, and that of Python outside of it.
    """
    name = naming or _naming.get()
    return _OPTION.sub(lambda m: name(m[1], m[2]) if m[1] else m[0], sentence)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def in_brief(value: Any) -> str:
    """Return a value of a file as a sentence can hold it: on one line, and not long."""
    said = " ".join(repr(value).split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


class UserError(Exception):
    """Bad input, said in one clear sentence: the thing, the cause, the next command.

    The command line prints it without a traceback and exits with code 2.
    """

    def __str__(self) -> str:
        """Return the sentence, for whoever reads it here: see :func:`worded`."""
        return worded(self.sentence)

    @property
    def sentence(self) -> str:
        """The sentence as it was raised, to be passed on to another process or reader."""
        return str(self.args[0]) if self.args else ""


class PartlyRefusedError(UserError):
    """Some of what was asked for cannot be made; the others were, and are here."""

    def __init__(self, sentence: str, made: Any) -> None:
        """Take what cannot be made and why, and what the function would have returned."""
        super().__init__(sentence)
        self.made = made


class UnknownFamilyError(UserError):
    """bitquilt does not know a model's family itself; ``quantize`` goes by the model's base."""

    def __init__(self, cause: str, advice: str) -> None:
        """Take what was found, and what helps those of whose purpose nothing is known."""
        super().__init__(f"{cause}; {advice}")
        self.cause = cause


class NotFiniteError(UserError):
    """A model computes NaN or infinity, so that it is of no use."""


class EngineCrashedError(UserError):
    """The engine's process is gone; what it was asked for may work in a new one."""


class EngineMissingError(UserError):
    """The engine that would run a file is not installed here."""
