"""Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3: JSON between ``<tool_call>`` tags."""

from __future__ import annotations

from bitquilt.talk.tool_calls.call import (
    CallStyle,
    Found,
    Marks,
    Schemas,
    json_call,
    read_json_calls,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    return read_json_calls(OPEN, CLOSE, text, over)


def _force(schemas: Schemas, marks: Marks) -> str:
    objects = " | ".join(json_call(name, schema) for name, schema in schemas.items())
    return f'call: {marks(OPEN)} "\\n" object "\\n" {marks(CLOSE)}\nobject: {objects}'


HERMES = CallStyle(name="Hermes", starts=(OPEN,), tags=(CLOSE,), read=_read, force=_force)
