"""FunctionGemma and Gemma 4: ``call:NAME{key:value}``, where strings stand between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bitquilt.talk.grammar import quoted, text_until
from bitquilt.talk.tool_calls.call import NO_CALL, Call, CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import closed, json_value, listed_texts, skip_space


@dataclass(frozen=True)
class _Tags:
    """How one generation of Gemma writes."""

    open: str
    close: str
    quote: str


FUNCTION_GEMMA = _Tags("<start_function_call>", "<end_function_call>", "<escape>")
GEMMA_4 = _Tags("<|tool_call>", "<tool_call|>", '<|"|>')
_HEAD = re.compile(r"\s*call:([\w.-]+)\s*(?=\{)")
_BARE = re.compile(r"[^,:{}\[\]]+")


class _CutError(Exception):
    """The text is not complete yet."""


class _WrongError(Exception):
    """The text is no value."""


def _read(tags: _Tags, text: str, schemas: Schemas, over: bool) -> Found | None:
    head = _HEAD.match(text, len(tags.open))
    if head is None:
        return NO_CALL if "{" in text else None
    try:
        arguments, place = _value(tags.quote, text, head.end())
    except _CutError:
        return None
    except _WrongError:
        return NO_CALL
    after = closed(text, place, tags.close, over)
    return None if after is None else Found(after, [Call.of(head[1], arguments)])


def _value(quote: str, text: str, place: int) -> tuple[Any, int]:
    """Read one value; returns it and where it ends."""
    place = skip_space(text, place)
    for mark in (quote, '"'):
        if text.startswith(mark, place):
            end = text.find(mark, place + len(mark))
            if end < 0:
                raise _CutError
            return text[place + len(mark) : end], end + len(mark)
    if text[place : place + 1] in ("{", "["):
        return _group(quote, text, place)
    bare = _BARE.match(text, place)
    if bare is None or bare.end() == len(text):
        raise _CutError if place >= len(text) or bare else _WrongError
    said = bare.group().strip()
    try:
        return json.loads(said), bare.end()
    except ValueError:
        return said, bare.end()


def _group(quote: str, text: str, place: int) -> tuple[Any, int]:
    """Read an object or a list."""
    named = text[place] == "{"
    ends = "}" if named else "]"
    found: dict[str, Any] = {}
    items: list[Any] = []
    place += 1
    while True:
        place = skip_space(text, place)
        if place >= len(text):
            raise _CutError
        if text[place] == ends:
            return (found if named else items), place + 1
        if text[place] == "," and (found or items):
            place = skip_space(text, place + 1)
        value, place = _value(quote, text, place)
        if not named:
            items.append(value)
            continue
        place = skip_space(text, place)
        if place >= len(text):
            raise _CutError
        if text[place] != ":":
            raise _WrongError
        found[str(value)], place = _value(quote, text, place + 1)


def _force(tags: _Tags, schemas: Schemas, marks: Marks) -> str:
    writer = _Writer(marks(tags.quote))
    each = [f"{quoted(f'call:{name}')} {writer.value(one)}" for name, one in schemas.items()]
    call = f"call: {marks(tags.open)} named {marks(tags.close)}\nnamed: {' | '.join(each)}"
    return "\n".join([call, *writer.rules])


class _Writer:
    """Writes values of schemas in Lark."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._text, rule = text_until(quote, "text")
        self.rules = [rule]

    def value(self, schema: Mapping[str, Any]) -> str:
        """The name of a rule for values of a schema, or the rule itself."""
        if (texts := listed_texts(schema)) is not None:
            return f"{self._quote} {texts} {self._quote}"
        if schema.get("type") == "string":
            return f"{self._quote} {self._text}"
        if schema.get("type") == "array":
            item = self._rule(self.value(schema.get("items") or {"type": "string"}))
            return f'"[" ({item} ("," {item})*)? "]"'
        if schema.get("type") == "object" and "properties" in schema:
            return '"{" ' + self._members(schema) + ' "}"'
        return json_value(schema)

    def _members(self, schema: Mapping[str, Any]) -> str:
        """The members of an object: those that are required, then any of the others."""
        required = schema.get("required", ())
        members = {
            key: self._rule(f"{quoted(key + ':')} {self.value(one)}")
            for key, one in schema["properties"].items()
        }
        musts = [rule for key, rule in members.items() if key in required]
        others = [rule for key, rule in members.items() if key not in required]
        if musts:
            return ' "," '.join(musts) + "".join(f' ("," {rule})?' for rule in others)
        tails = [
            f"({rule}" + "".join(f' ("," {later})?' for later in others[place + 1 :]) + ")"
            for place, rule in enumerate(others)
        ]
        return f"({' | '.join(tails)})?" if tails else ""

    def _rule(self, body: str) -> str:
        self.rules.append(f"v{len(self.rules)}: {body}")
        return f"v{len(self.rules) - 1}"


def gemma_style(template: str) -> CallStyle:
    """The generation of Gemma that a template is for."""
    tags = FUNCTION_GEMMA if FUNCTION_GEMMA.open in template else GEMMA_4
    return CallStyle(
        name="Gemma",
        starts=(tags.open,),
        tags=(tags.close, tags.quote),
        read=partial(_read, tags),
        force=partial(_force, tags),
    )
