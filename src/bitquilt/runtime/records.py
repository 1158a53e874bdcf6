"""Dataclasses as JSON and back: the fields of a dataclass are the schema of what is written.

What is read by a later bitquilt has a ``format``, a whole number that grows with every change that
an earlier version would misread.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from math import nan
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from bitquilt.errors import UserError
from bitquilt.runtime.files import nan_to_null, read_json

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Write a value in JSON types: a dataclass as an object, NaN as null, a path as its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    return str(value) if isinstance(value, Path) else nan_to_null(value)


def from_json(kind: type[T], content: Any) -> T:
    """Read a value of a type from what :func:`to_json` gives; unknown keys are passed over.

    Args:
        kind: a dataclass, or any type that a field of one has: numbers, text, paths, mappings,
            sequences, which become tuples, and optional ones.
        content: JSON types.

    Raises:
        ValueError: a field is missing or has another type; the message names it.
    """
    found: T = _read(kind, content, "")
    return found


def load_record(kind: type[T], path: Path, format: int, remedy: str) -> T:
    """Read a dataclass from a JSON file of this format.

    Args:
        kind: the dataclass.
        path: the file.
        format: the ``format`` that the file must have.
        remedy: ends the sentence about a file that cannot be read: the next command.

    Raises:
        UserError: the file is not JSON, has another format, or lacks a field.
    """
    content = read_json(path, remedy)
    if content.get("format") != format:
        raise UserError(f"{path} was written by another version of bitquilt; {remedy}")
    try:
        return from_json(kind, content)
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}; {remedy}") from error


def _read(kind: Any, content: Any, where: str) -> Any:
    """Read one value; ``where`` is its place in the whole, for messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, content, where)
    if kind is Any:
        return content
    if origin in (typing.Union, types.UnionType):
        (inner,) = (one for one in arguments if one is not type(None))
        return None if content is None else _read(inner, content, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(content, dict), where, "an object")
        return {key: _read(arguments[1], one, f"{where}.{key}") for key, one in content.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        _require(isinstance(content, list), where, "a list")
        return tuple(_read(arguments[0], one, f"{where}[{n}]") for n, one in enumerate(content))
    if kind is float:
        number = isinstance(content, (int, float)) and not isinstance(content, bool)
        _require(content is None or number, where, "a number")
        return nan if content is None else float(content)
    if kind is Path:
        _require(isinstance(content, str), where, "a path")
        return Path(content)
    _require(type(content) is kind, where, f"of type {kind.__name__}")
    return content


def _read_fields(kind: Any, content: Any, where: str) -> Any:
    _require(isinstance(content, dict), where, "an object")
    hints = get_type_hints(kind)
    values = {}
    for field in fields(kind):
        place = f"{where}.{field.name}" if where else field.name
        if field.name in content:
            values[field.name] = _read(hints[field.name], content[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} is missing")
    return kind(**values)


def _require(met: bool, where: str, wanted: str) -> None:
    if not met:
        raise ValueError(f"{where or 'it'} is not {wanted}")
