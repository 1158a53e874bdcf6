"""Options as fields: the base of every config, and what the command line has to know of a field.

Configs are frozen dataclasses. Each field has its sentence once; the command line
(:mod:`bitquilt.cli.options`), the keyword arguments of functions, ``help()`` and the reference page
are derived from it.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from bitquilt.errors import UserError

Config = TypeVar("Config", bound="Options")


@dataclass(frozen=True)
class Option:
    """What the command line and the reference pages know of a field."""

    help: str
    """One or two full sentences."""
    flag: str | None = None
    """Its name on the command line; the field's own if not given. Empty: from Python only."""
    short: str | None = None
    """A second name of one letter."""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    """Whether several values can be given, with commas between them."""
    repeated: bool = False
    """Of many values, whether each has the flag before it instead, and there may be none."""
    empty: bool = False
    """Whether an empty text is a value, not a mistake."""
    envvar: str | None = None
    """The environment variable that holds the value where the flag is not given."""
    optional_value: str | None = None
    """What the flag alone means, where its value may be left out."""
    above: float | None = None
    """The value must be greater than this number."""
    least: float | None = None
    """The value must not be less than this number."""
    most: float | None = None
    """The value must not be greater than this number."""

    def flag_of(self, name: str) -> str:
        """The name on the command line of a field of this name."""
        return self.flag or f"--{name.replace('_', '-')}"


def option(help: str, *, default: Any = MISSING, **facts: Any) -> Any:
    """A field with its :class:`Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **facts)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """A set of options. Subclasses add fields; each has its :class:`Option`."""

    def __init_subclass__(cls) -> None:
        """Put the sentences of the fields into the docstring, where ``help`` shows them."""
        super().__init_subclass__()
        known: dict[str, Option] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).get("__dataclass_fields__", vars(base)).items():
                if isinstance(value, dataclasses.Field) and "option" in value.metadata:
                    known[name] = value.metadata["option"]
        lines = [f"    {name}: {option.help}" for name, option in known.items()]
        cls.__doc__ = "\n".join([f"{cls.__doc__}", "", "Attributes:", *lines])

    def __post_init__(self) -> None:
        """Refuse values that an option's own facts exclude; one value of many becomes a tuple.

        Raises:
            UserError: a value is of another type, is not among the choices, or is out of range.
        """
        hints = get_type_hints(type(self))
        for field in fields(self):
            known = field.metadata.get("option", Option(field.name))
            flag, value, kinds = known.flag_of(field.name), getattr(self, field.name), None
            if known.many and value is not None:
                single = isinstance(value, str | int | float)
                value = (value,) if single else tuple(value)
                object.__setattr__(self, field.name, value)
                kinds = _element_types(hints[field.name])
                if not value and not known.repeated:
                    raise UserError(f"{flag} has no value; give one, or leave the option out")
            for each in value if known.many and value is not None else (value,):
                _check_type(flag, each, kinds or _types(hints[field.name]))
                _check(flag, each, known)

    @classmethod
    def described(cls) -> dict[str, Option]:
        """Field name → its option, in the order of definition."""
        return {f.name: f.metadata["option"] for f in fields(cls) if "option" in f.metadata}

    @classmethod
    def of(cls: type[Config], config: Config | None, options: Mapping[str, Any]) -> Config:
        """A config, or the one that keyword arguments describe.

        Raises:
            UserError: both are given, or an option does not exist.
        """
        if config is not None and options:
            raise UserError(
                f"{', '.join(options)} and a {cls.__name__} were both given; put the options "
                f"into the {cls.__name__}"
            )
        if unknown := sorted(options.keys() - {field.name for field in fields(cls)}):
            known = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{cls.__name__} has no option {unknown[0]}; its options are {known}")
        if config is not None and not isinstance(config, cls):
            raise UserError(f"a {type(config).__name__} was given where a {cls.__name__} belongs")
        return cls(**options) if config is None else config

    def arguments(self) -> list[str]:
        """The words of a command line that ask for the same; defaults are left out."""
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Options):
                words += value.arguments()
            known = field.metadata.get("option")
            if known is None or known.flag == "" or value == field.default:
                continue
            flag = known.flag_of(field.name)
            if known.repeated:
                words += [word for each in value for word in (flag, _word(each))]
                continue
            words.append(flag)
            if isinstance(value, tuple):
                words.append(",".join(map(_word, value)))
            elif value is not True:
                words.append(str(value))
        return words


def _word(value: Any) -> str:
    """One value of several, as the command line takes it."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _types(hint: Any) -> tuple[type, ...]:
    """The plain types of a hint: ``float | None`` is float and None."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(part for part in parts if isinstance(part, type))


def _element_types(hint: Any) -> tuple[type, ...]:
    """The types of one of many values: ``Sequence[float] | None`` is float."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(kind for part in parts for kind in get_args(part) if isinstance(kind, type))


def _check_type(flag: str, value: Any, kinds: tuple[type, ...]) -> None:
    wider = (*kinds, int) if float in kinds else kinds
    if isinstance(value, wider) and not (isinstance(value, bool) and bool not in kinds):
        return
    names = " or ".join(kind.__name__ for kind in kinds if kind is not NoneType)
    raise UserError(f"{flag} is {value!r}, which is not a value of type {names}")


def _check(flag: str, value: Any, known: Option) -> None:
    if value is None:
        return
    if value == "" and known.optional_value is None and not known.empty:
        raise UserError(f"{flag} is empty; give a value, or leave the option out")
    if known.choices and value not in known.choices:
        raise UserError(f"{flag} {value} is unknown; choose one of {', '.join(known.choices)}")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{flag} nan is not a number; give a number")
    if known.above is not None and not value > known.above:
        raise UserError(f"{flag} {value} is not greater than {known.above:g}; give a larger number")
    if known.least is not None and not value >= known.least:
        raise UserError(f"{flag} {value} is less than {known.least:g}; give a larger number")
    if known.most is not None and not value <= known.most:
        raise UserError(f"{flag} {value} is greater than {known.most:g}; give a smaller number")


def command(verb: str, model: str, config: Options) -> str:
    """The command line that asks for the same, for a shell."""
    return shlex.join(["bitquilt", verb, str(model), *config.arguments()])
