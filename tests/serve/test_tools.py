"""Tool calls: found however the text is cut, and only where they are calls."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.serve.tools import Call, CallReader

CALL = '<tool_call>{"name": "f", "arguments": {"x": "</tool"}}</tool_call>'
TEXT = f"a < b {CALL} and {CALL}<tool_"


def read(pieces: list[str]) -> list[str | Call]:
    reader = CallReader()
    parts = [part for piece in pieces for part in reader.push(piece)]
    return [*parts, *reader.rest()]


def joined(parts: list[str | Call]) -> list[str | Call]:
    """Neighbouring texts as one."""
    found: list[str | Call] = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@given(st.lists(st.integers(0, len(TEXT))))
def test_it_does_not_matter_how_the_text_is_cut(places: list[int]) -> None:
    ends = [0, *sorted(places), len(TEXT)]
    pieces = [TEXT[a:b] for a, b in itertools.pairwise(ends)]
    call = Call("f", json.dumps({"x": "</tool"}))
    assert joined(read(pieces)) == ["a < b ", call, " and ", call, "<tool_"]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no JSON</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        "<tool_call>[1]</tool_call>",
        "<tool_call>cut off",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert joined(read([text])) == [text]


def test_the_last_tag_may_be_missing() -> None:
    assert read(['<tool_call>{"name": "f"}']) == [Call("f", "{}")]
