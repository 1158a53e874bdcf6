"""Mistral: ``[TOOL_CALLS]`` before a JSON list, or before each name, with ``[ARGS]`` after it."""

from __future__ import annotations

import re
from functools import partial

from bitquilt.talk.grammar import quoted
from bitquilt.talk.tool_calls.call import NO_CALL, CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import (
    json_calls,
    json_value,
    read_arguments,
    read_json_calls,
    skip_space,
)

START, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    place = skip_space(text, len(START))
    if text[place : place + 1] in ("", "[", "{"):
        return read_json_calls(START, "", text, over)
    if (named := _NAMED.match(text, place)) is None:
        return NO_CALL if "{" in text else None
    return read_arguments(named[1], text, named.end())


def _force(with_args: bool, schemas: Schemas, marks: Marks) -> str:
    if with_args:
        each = [f"{quoted(name)} {marks(ARGS)} {json_value(one)}" for name, one in schemas.items()]
        return f"call: {marks(START)} named\nnamed: {' | '.join(each)}"
    return f'call: {marks(START)} "[" object "]"\nobject: {json_calls(schemas)}'


def mistral_style(template: str) -> CallStyle:
    """Mistral's newer models write a name and its arguments, the older ones a list."""
    return CallStyle(
        name="Mistral",
        starts=(START,),
        tags=(ARGS, ID),
        read=_read,
        force=partial(_force, ARGS in template),
    )
