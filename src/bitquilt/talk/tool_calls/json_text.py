"""JSON in an answer: the calls that it holds, where it ends, and the grammar that writes it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bitquilt.talk.grammar import JSON_STYLE, quoted
from bitquilt.talk.tool_calls.call import NO_CALL, Call, Found, Schemas

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|["{}\[\]]', re.S)
_NAMES = ("arguments", "parameters")


def json_end(text: str, start: int) -> int | None:
    """Where the JSON object or array that begins at a place ends; None if it does not yet."""
    depth = 0
    for token in _TOKENS.finditer(text, start):
        said = token.group()
        if said == '"':
            return None
        depth += (said in "{[") - (said in "}]")
        if depth == 0 and said in "}]":
            return token.end()
    return None


def calls_in(written: str) -> list[Call] | None:
    """The calls in a JSON object or a list of them, by the names that families give the fields."""
    try:
        said = json.loads(written, strict=False)
    except ValueError:
        return None
    calls = [_call(one) for one in (said if isinstance(said, list) else [said])]
    known = [one for one in calls if one is not None]
    return known if known and len(known) == len(calls) else None


def _call(said: Any) -> Call | None:
    if not isinstance(said, dict):
        return None
    function = said.get("function")
    if isinstance(function, dict):
        said = function
    elif isinstance(function, str):
        said = {"name": function, **said}
    arguments: Any = next((said[name] for name in _NAMES if name in said), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}", strict=False)
        except ValueError:
            return None
    if not isinstance(said.get("name"), str) or not isinstance(arguments or {}, dict):
        return None
    return Call.of(said["name"], arguments or {})


def skip_space(text: str, place: int) -> int:
    """The next place that is not white space."""
    return len(text) - len(text[place:].lstrip())


def closed(text: str, place: int, tag: str, over: bool) -> int | None:
    """Where a closing tag ends that may be left out; None where it may still come."""
    after = skip_space(text, place)
    if text.startswith(tag, after):
        return after + len(tag)
    return None if tag.startswith(text[after:]) and not over else place


def read_json_calls(start: str, close: str, text: str, over: bool) -> Found | None:
    """Read one JSON value with calls between two tags, the second of which may be missing."""
    place = skip_space(text, len(start))
    if text[place : place + 1] not in ("", "{", "["):
        return NO_CALL
    if (end := json_end(text, place)) is None:
        return None
    if (calls := calls_in(text[place:end])) is None:
        return NO_CALL
    after = closed(text, end, close, over) if close else end
    return None if after is None else Found(after, calls)


def read_arguments(name: str, text: str, place: int) -> Found | None:
    """Read the JSON object at a place as the arguments of a call, whose name came before."""
    if (end := json_end(text, place)) is None:
        return None
    try:
        arguments = json.loads(text[place:end], strict=False)
    except ValueError:
        return NO_CALL
    return Found(end, [Call.of(name, arguments)])


def json_calls(schemas: Schemas, field: str = "arguments") -> str:
    """A call of one of some tools as a JSON object, in Lark."""
    return " | ".join(_json_call(name, schema, field) for name, schema in schemas.items())


def _json_call(name: str, schema: Mapping[str, Any], field: str) -> str:
    before = f'{{"name": {quoted(name)}, "{field}": '
    return f'{quoted(before)} {json_value(schema)} "}}"'


def json_value(schema: Mapping[str, Any]) -> str:
    """JSON of a schema, in Lark."""
    spaced = {**schema, "x-guidance": JSON_STYLE}
    return "%json " + json.dumps(spaced, ensure_ascii=False)


def listed_texts(schema: Mapping[str, Any]) -> str | None:
    """The texts that a schema lists, in Lark; None if it does not list texts only."""
    texts = schema.get("enum", [None])
    if not all(isinstance(one, str) for one in texts):
        return None
    return f"({' | '.join(map(quoted, texts))})"
