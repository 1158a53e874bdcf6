"""Qwen3-Coder and Qwen 3.5: ``<function=NAME>``, and ``<parameter=NAME>`` for each argument."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bitquilt.talk.grammar import quoted, text_until
from bitquilt.talk.tool_calls.call import NO_CALL, Call, CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import closed, json_value, listed_texts

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r"(?:<tool_call>)?\s*<function=([^>\n]+)>\s*")
_PARAMETER = re.compile(
    r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|</function>)", re.S
)
_END = re.compile(r"\s*</function>")


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    head = _HEAD.match(text)
    if head is None:
        # what stands there may still become a head
        begun = text.removeprefix(OPEN).lstrip()
        wanted = "<function="
        waits = wanted.startswith(begun[: len(wanted)]) and "\n" not in begun and ">" not in begun
        return None if waits else NO_CALL
    name, place = head[1].strip(), head.end()
    properties = schemas.get(name, {}).get("properties", {})
    arguments = {}
    while (one := _PARAMETER.match(text, place)) is not None:
        key = one[1].strip()
        arguments[key] = typed(one[2], properties.get(key, {}))
        place = one.end()
    if (end := _END.match(text, place)) is None:
        return None
    after = closed(text, end.end(), CLOSE, over)
    return None if after is None else Found(after, [Call.of(name, arguments)])


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """A value that was written as text, by its schema: as JSON, unless it may be a string."""
    kinds = schema.get("type", "string" if "anyOf" not in schema else None)
    kinds = kinds if isinstance(kinds, list) else [kinds]
    kinds += [one.get("type") for one in schema.get("anyOf", ())]
    bare = text.strip()
    if "null" in kinds and bare in ("null", "None"):
        return None
    if "string" in kinds:
        return text
    try:
        return json.loads({"True": "true", "False": "false"}.get(bare, bare))
    except ValueError:
        return text


def _force(schemas: Schemas, marks: Marks) -> str:
    rules, heads = [], []
    for number, (name, schema) in enumerate(schemas.items()):
        parts = []
        for place, (key, one) in enumerate(schema.get("properties", {}).items()):
            rule = f"p{number}x{place}"
            optional = "" if key in schema.get("required", ()) else "?"
            parts.append(rule + optional)
            rules += _parameter(rule, key, one)
        head = quoted(f"\n<function={name}>\n")
        heads.append(f"{head} {' '.join(parts)}")
    body = " | ".join(heads)
    lines = [f'call: {marks(OPEN)} function "</function>\\n" {marks(CLOSE)}', f"function: {body}"]
    return "\n".join([*lines, *rules])


def _parameter(rule: str, key: str, schema: Mapping[str, Any]) -> list[str]:
    before = quoted(f"<parameter={key}>\n")
    if schema.get("type") == "string" and "enum" not in schema:
        text, line = text_until('"\\n</parameter>\\n"', f"{rule}v")
        return [f"{rule}: {before} {text}", line]
    value = listed_texts(schema) or json_value(schema)
    return [f'{rule}: {before} {value} "\\n</parameter>\\n"']


QWEN_CODER = CallStyle(
    name="Qwen3-Coder",
    starts=(OPEN, "<function="),
    tags=(CLOSE,),
    read=_read,
    force=_force,
)
