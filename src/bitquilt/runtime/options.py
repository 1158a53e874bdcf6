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
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

from bitquilt.errors import KEYWORDS, UserError
from bitquilt.runtime.near import did_you_mean

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
    negated: bool = False
    """Whether ``--no-NAME`` says no; without either flag something else decides."""
    optional_value: str | None = None
    """What the flag alone means, where its value may be left out."""
    reads: str | None = None
    """What the value ends with where it is the path of a file to read; an empty text, if it always
    is one."""
    text: bool = False
    """Whether that file holds text: documents, as :mod:`bitquilt.calibration.corpus` reads them."""
    above: float | None = None
    """The value must be greater than this number."""
    least: float | None = None
    """The value must not be less than this number."""
    most: float | None = None
    """The value must not be greater than this number."""

    @property
    def limits(self) -> str:
        """The limits of a number in words: ``at least 16``; empty where there are none."""
        if self.least is not None and self.most is not None:
            return f"between {self.least:g} and {self.most:g}"
        if self.above is not None:
            most = "" if self.most is None else f" and at most {self.most:g}"
            return f"greater than {self.above:g}{most}"
        return f"at least {self.least:g}" if self.least is not None else ""

    def admits(self, number: float) -> bool:
        """Tell whether a number is within the limits."""
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
        )

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
                if isinstance(value, dataclasses.Field):
                    if "option" in value.metadata:
                        known[name] = value.metadata["option"]
                    _name_nested(value.default_factory)
        for name, option in known.items():
            _name(option.flag_of(name), name)
            if option.negated:
                KEYWORDS[negated(option.flag_of(name))] = f"{name}=False"
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
                single = isinstance(value, str | int | float | Path)
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
            raise UserError(_unknown(cls, unknown[0]))
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
            words.append(negated(flag) if value is False else flag)
            if isinstance(value, tuple):
                words.append(",".join(map(_word, value)))
            elif not isinstance(value, bool):
                words.append(str(value))
        return words


def negated(flag: str) -> str:
    """Return the flag that says no: ``--no-sequential``."""
    return flag.replace("--", "--no-", 1)


def _unknown(config: type[Options], name: str) -> str:
    """Say that a config has no such field, and what may have been meant."""
    own = [field.name for field in fields(config)]
    for field, other in get_type_hints(config).items():
        if isinstance(other, type) and issubclass(other, Options) and name in other.described():
            return (
                f"{config.__name__} has no option {name}, but {other.__name__} has; give "
                f"{field}={other.__name__}({name}=…)"
            )
    return (
        f"{config.__name__} has no option {name}; its options are {', '.join(own)}"
        + did_you_mean(name, own)
    )


def _name(flag: str, field: str) -> None:
    """Remember what an option is called in Python; two configs may have options of one name."""
    if flag and KEYWORDS.setdefault(flag, field) != field:
        KEYWORDS[flag] = field.rpartition(".")[2]


def _name_nested(factory: Any) -> None:
    """Name the options of a config that is a field of another by that config, too."""
    if isinstance(factory, type) and issubclass(factory, Options):
        for name, option in factory.described().items():
            if KEYWORDS.get(flag := option.flag_of(name)) == name:
                KEYWORDS[flag] = f"{factory.__name__}.{name}"


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
    return tuple(kind for part in parts for each in get_args(part) for kind in _types(each))


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
        raise UserError(
            f"{flag} is {value!r}, which is not one of {', '.join(known.choices)}"
            + did_you_mean(value, known.choices)
        )
    if isinstance(value, float) and math.isnan(value):
        within = f" that is {known.limits}" if known.limits else ""
        raise UserError(f"{flag} is nan; give a number{within}")
    if not known.admits(value):
        raise UserError(f"{flag} is {_word(value)}; give a number that is {known.limits}")


def command(verb: str, model: str, config: Options) -> str:
    """The command line that asks for the same, for a shell."""
    return shlex.join(["bitquilt", verb, str(model), *config.arguments()])
