"""Mistral: ``[TOOL_CALLS]`` before a JSON list, or before each name, with ``[ARGS]`` after it."""

from __future__ import annotations

import json
import re
from functools import partial

from bitquilt.talk.tool_calls.call import (
    NO_CALL,
    Call,
    CallStyle,
    Found,
    Marks,
    Schemas,
    calls_in,
    json_call,
    json_end,
    json_value,
    skip_space,
)

START, ARGS, ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    place = skip_space(text, len(START))
    named = None
    if text[place : place + 1] not in ("", "[", "{"):
        if (named := _NAMED.match(text, place)) is None:
            return NO_CALL if "{" in text else None
        place = named.end()
    if (end := json_end(text, place)) is None:
        return None
    if named is None:
        calls = calls_in(text[place:end])
        return NO_CALL if calls is None else Found(end, calls)
    try:
        arguments = json.loads(text[place:end], strict=False)
    except ValueError:
        return NO_CALL
    return Found(end, [Call.of(named[1], arguments)])


def _force(with_args: bool, schemas: Schemas, marks: Marks) -> str:
    if with_args:
        each = [
            f"{json.dumps(name)} {marks(ARGS)} {json_value(one)}" for name, one in schemas.items()
        ]
        return f"call: {marks(START)} named\nnamed: {' | '.join(each)}"
    each = [json_call(name, schema) for name, schema in schemas.items()]
    return f'call: {marks(START)} "[" object "]"\nobject: {" | ".join(each)}'


def mistral_style(template: str) -> CallStyle:
    """Mistral's newer models write a name and its arguments, the older ones a list."""
    return CallStyle(
        name="Mistral",
        starts=(START,),
        tags=(ARGS, ID),
        read=_read,
        force=partial(_force, ARGS in template),
    )
