"""What the public functions take and return can be imported from ``bitquilt`` itself."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

import pytest

import bitquilt
import bitquilt.talk

FUNCTIONS = [name for name in bitquilt.__all__ if inspect.isfunction(getattr(bitquilt, name))]


CLASSES = [name for name in bitquilt.__all__ if inspect.isclass(getattr(bitquilt, name))]


def own_types(hint: Any) -> Iterator[type]:
    """The classes of bitquilt in an annotation, and those that their fields lead to."""
    if isinstance(hint, list):  # the arguments of a Callable
        for argument in hint:
            yield from own_types(argument)
    if isinstance(hint, type) and hint.__module__.startswith("bitquilt"):
        yield hint
        if dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"):
            for field in typing.get_type_hints(hint).values():
                yield from own_types(field)
    for argument in typing.get_args(hint):
        yield from own_types(argument)


def test_the_functions_are_public():
    verbs = {"quantize", "search", "plan", "inspect", "evaluate", "run_tasks", "bench"}
    assert verbs <= set(FUNCTIONS)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_function_takes_and_returns_is_public(function):
    for hint in typing.get_type_hints(getattr(bitquilt, function)).values():
        for found in own_types(hint):
            assert getattr(bitquilt, found.__name__, None) is found


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_holds_is_public(name):
    for found in own_types(getattr(bitquilt, name)):
        assert getattr(bitquilt, found.__name__, None) is found


def test_every_name_has_a_docstring():
    for name in bitquilt.__all__:
        assert inspect.getdoc(getattr(bitquilt, name)), name


def test_names_of_talking_are_there() -> None:
    """`bitquilt.talk` offers its names without importing them before they are needed."""
    from bitquilt import talk

    for name in talk.__all__:
        assert name in {"Event", "Message"} or getattr(talk, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = talk.nothing


@pytest.mark.parametrize("package", [bitquilt, bitquilt.talk], ids=lambda package: package.__name__)
def test_dir_lists_what_a_package_offers_and_a_near_miss_is_told(package) -> None:
    assert dir(package) == sorted(package.__all__)
    assert {"quantize", "vote"} & set(dir(package))
    with pytest.raises(AttributeError) as caught:
        _ = package.quantise
    assert caught.value.obj is package  # Python says "Did you mean" from these two
    assert caught.value.name == "quantise"
