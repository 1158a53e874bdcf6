"""Options of the command line, derived from configs: see :mod:`bitquilt.runtime.options`."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from bitquilt.config import AllocationConfig, QuantizeConfig
from bitquilt.errors import PartlyRefusedError
from bitquilt.evaluation.file_format import format_of
from bitquilt.gguf import SUFFIX
from bitquilt.models.sources.resolve import local_path, short_name
from bitquilt.runtime.extras import require_ray
from bitquilt.runtime.files import nan_to_null, refuse_file, refuse_unwritable
from bitquilt.runtime.near import did_you_mean, require_there
from bitquilt.runtime.options import Option, Options, negated
from bitquilt.runtime.sizes import is_size
from bitquilt.runtime.workdir import refuse_unusable


class Among(click.Choice[str]):
    """Names to choose among; one that is nearly right is found."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        """See :class:`click.Choice`."""
        refused = super().get_invalid_choice_message(value, ctx).rstrip(".")
        return refused + did_you_mean(str(value), self.choices)


class _InWords(click.ParamType[Any]):
    """Numbers whose limits are said in words; no comparison keeps NaN out of click's ranges."""

    known: Option
    number: click.ParamType[Any]

    def __init__(self, known: Option) -> None:
        """Take the limits from an option."""
        super().__init__()
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :class:`click.ParamType`."""
        try:
            number = self.number.convert(value, param, ctx)
        except click.BadParameter:
            whole = "a whole number" if self.number is click.INT else "a number"
            self.fail(f"{value!r} is not {whole}", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        if not self.known.admits(number):
            self.fail(f"{value} is not {self.known.limits}", param, ctx)
        return number

    def _describe_range(self) -> str:
        """What help says of the range: nothing where a smaller number would make no sense."""
        natural = self.known.most is None and self.known.least in (None, 0, 1)
        return "" if natural else self.known.limits


class Whole(_InWords, click.IntRange):
    """A whole number."""

    number = click.INT


class Finite(_InWords, click.FloatRange):
    """A number that is not infinite."""

    number = click.FLOAT


Made = TypeVar("Made")

DEFAULT = ParameterSource.DEFAULT


def require_model(reference: str | Path) -> None:
    """Refuse what is no model, before anything heavy is imported to read it.

    Raises:
        UserError: the path does not exist, or is no model, or a damaged one; or the hub has none of
            that name.
    """
    from bitquilt.models.sources.resolve import resolve

    path = resolve(str(reference), weights=False)
    if path.suffix == SUFFIX:
        from bitquilt.gguf.header import require_whole_gguf

        require_whole_gguf(path)


def require_possible(config: AllocationConfig) -> None:
    """Refuse what cannot be, before anything heavier is imported than that takes.

    Raises:
        UserError: there is no such preset, it is given a budget, a file is where the output
            belongs, the work directory is not ours, or Ray or the device is missing.
    """
    from bitquilt.allocation.preset_names import asked_preset

    asked_preset(config)
    refuse_file(Path(config.output), "--output")
    if config.work_dir is not None:
        refuse_unusable(Path(config.work_dir))
    if config.search.ray is not None:
        require_ray()
    if config.device != "auto":
        from bitquilt.runtime.device import computing

        with computing(config.device, config.threads):
            pass


def require_place(model: str, config: AllocationConfig) -> None:
    """Refuse directories that a run could not write into, before the model is opened.

    Raises:
        UserError: the output cannot be written, or the work directory is not ours or in use.
    """
    refuse_unwritable(Path(config.output), "--output")
    if isinstance(config, QuantizeConfig) and (config.imatrix is not None or config.trim):
        return  # without a work directory, or with that of the trimmed model
    refuse_unusable(config.work_directory(short_name(model, local_path(model) or Path())))


def _models(several: bool, files: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command its models, which it gets only if they may be some.

    Args:
        several: whether it takes more than one.
        files: whether it takes what was made of a model, in one of our formats.
    """
    name = "models" if several else "model"
    argument = click.argument(name, metavar="MODEL...", nargs=-1, required=True)
    argument = argument if several else click.argument(name)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_models(**values: Any) -> None:
            for reference in values[name] if several else (values[name],):
                if files:
                    format_of(reference)
                if not (files and Path(reference).is_dir()):
                    require_model(reference)
            command(**values)

        return argument(with_models)

    return decorate


MODEL = _models(several=False, files=False)
MODELS = _models(several=True, files=False)
"""Several of what :data:`MODEL` may be."""
MODEL_FILES = _models(several=True, files=True)
"""Several files or directories that were made of a model."""
JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="The command prints one JSON object on stdout, and everything else on stderr.",
)


def config_options(
    config: type[Options], skip: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a config; the command gets the config as ``config``.

    Args:
        config: its fields become options, those of a nested config too.
        skip: fields that this command does not offer.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_config(**values: Any) -> None:
            command(config=_build(config, values, skip), **values)

        made = list(_click_options(config, skip))
        return functools.reduce(lambda done, option: option(done), reversed(made), with_config)

    return decorate


def _build(config: type[Options], values: dict[str, Any], skip: Iterable[str]) -> Any:
    """The config that the values of options ask for; takes them out of ``values``.

    What the caller of ``main`` gave beside the command line holds where that says nothing.
    """
    context = click.get_current_context()
    own: dict[str, Any] = dict(context.find_root().obj or {})
    names = {field.name for field in dataclasses.fields(config)}
    own = {name: value for name, value in own.items() if name in names}
    for field in dataclasses.fields(config):
        if (nested := _nested(config, field.name)) is not None:
            own[field.name] = _build(nested, values, skip)
        elif (name := _parameter(config, field.name)) in values:
            value = values.pop(name)
            if field.name not in own or context.get_parameter_source(name) != DEFAULT:
                own[field.name] = value
    for name, known in config.described().items():
        value = own.get(name) or ()
        for path in value if known.repeated else (value,):
            if path and known.reads is not None and str(path).endswith(known.reads):
                require_there(path)  # before anything heavy is imported to read it
                if known.text:
                    from bitquilt.calibration.corpus import from_file

                    from_file(Path(path))
    return config(**own)


def _click_options(config: type[Options], skip: Iterable[str]) -> Iterator[Callable[..., Any]]:
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if (nested := _nested(config, field.name)) is not None:
            yield from _click_options(nested, skip)
            continue
        known: Option | None = field.metadata.get("option")
        if known is None or known.flag == "" or field.name in skip:
            continue
        flags = [flag for flag in (known.short, known.flag_of(field.name)) if flag]
        if known.negated:
            flags[-1] += f"/{negated(flags[-1])}"
        yield click.option(
            _parameter(config, field.name),
            *flags,
            **_facts(known, hints[field.name], field.default),
        )


def _facts(known: Option, hint: Any, default: Any) -> dict[str, Any]:
    """What click has to know of an option."""
    facts: dict[str, Any] = {"help": known.help, "default": default, "metavar": known.metavar}
    if known.repeated:
        return facts | {"type": str, "multiple": True, "callback": _full}
    if default is dataclasses.MISSING:
        del facts["default"]
        facts["required"] = True
    elif known.many and default is not None:
        facts["default"] = ",".join(map(str, default))
    if hint is bool or known.negated:
        return facts | {"is_flag": True}
    if facts.get("default") is not None:
        facts["show_default"] = True
    if known.optional_value is not None:
        facts |= {"is_flag": False, "flag_value": known.optional_value}
    if known.envvar is not None:
        read = _from_environment(known.envvar)
        facts |= {"envvar": known.envvar, "show_envvar": True, "callback": read}
    if known.many:
        facts["callback"] = _many(hint)
    else:
        facts["type"] = _type(known, hint)
    return facts


def _type(known: Option, hint: Any) -> Any:
    if known.choices:
        return Among(known.choices)
    kinds = {hint, *get_args(hint)}
    if float in kinds:
        return Finite(known)
    return Whole(known) if int in kinds else str


def _full(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty one among the texts of an option that is repeated."""
    if "" in texts:
        raise click.BadParameter("the text is empty")
    return texts


def _from_environment(
    variable: str,
) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Read an empty variable too, which click takes for one that is not set."""
    return lambda _, __, value: os.environ.get(variable) if value is None else value


LISTS: dict[type, tuple[Callable[[str], Any], str]] = {
    float: (float, "numbers like 3,3.5,4"),
    int: (int, "whole numbers like 128,512"),
    str: (str.strip, "names like demo,gsm8k"),
}
"""Kind of a value → how it is read, and what a list of them is called."""


def _many(hint: Any) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Read values with commas between them, of the kind that ``hint`` is a sequence of."""
    (listed,) = (one for one in (hint, *get_args(hint)) if get_origin(one) is Sequence)
    (kind,) = get_args(listed)
    read, called = LISTS[kind]

    def values(
        context: click.Context, param: click.Parameter, text: str | None
    ) -> list[Any] | None:
        if text is None:
            return None
        try:
            found = [read(part) for part in text.split(",")]
        except ValueError:
            found = []
        if kind is float and "--size" in options_of(context.command) and is_size(text):
            raise click.BadParameter(f"{text!r} is a size; give --size {text}", param=param)
        if not found or "" in found:
            raise click.BadParameter(f"{text!r} is not a list of {called}", param=param)
        return list(dict.fromkeys(found)) if kind is int else found

    return values


def _nested(config: type[Options], name: str) -> type[Options] | None:
    """The config that a field holds, if it holds one."""
    hint = get_type_hints(config)[name]
    return hint if isinstance(hint, type) and issubclass(hint, Options) else None


def _parameter(config: type[Options], name: str) -> str:
    """The name by which click hands over a field: unlike those of other configs."""
    return f"{config.__name__.lower()}_{name}"


def show(
    work: Callable[[], Made],
    to_json: Callable[[Made], dict[str, Any]],
    to_people: Callable[[Made], None],
    as_json: bool,
) -> None:
    """Do some work and print its result, also where only a part of it could be done.

    Raises:
        PartlyRefusedError: what ``work`` raised, after the result was printed.
    """
    refused = None
    try:
        made = work()
    except PartlyRefusedError as error:
        made, refused = error.made, error
    if as_json:
        print_json(to_json(made) | (error_object(str(refused), 2) if refused else {}))
    else:
        to_people(made)
    if refused:
        raise refused


def error_object(sentence: str, code: int) -> dict[str, Any]:
    """What ``--json`` says of an error."""
    return {"error": {"sentence": sentence, "code": code}}


def print_json(content: dict[str, Any]) -> None:
    """One object on stdout."""
    click.echo(json.dumps(nan_to_null(content), indent=2, ensure_ascii=False))


def options_of(command: click.Command) -> set[str]:
    """The options of a command, as they are typed."""
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}


_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_CONTROLS = {**_PICTURES, 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")}


def printable(text: str) -> str:
    """Return text that a model or a file says, for a terminal: control characters as pictures.

    Escape sequences would move the cursor, change the title or hide what stands there.
    """
    return text.replace("\r\n", "\n").translate(_CONTROLS)
