"""Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3: JSON between ``<tool_call>`` tags."""

from __future__ import annotations

from bitquilt.talk.tool_calls.call import CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import json_calls, read_json_calls

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    return read_json_calls(OPEN, CLOSE, text, over)


def _force(schemas: Schemas, marks: Marks) -> str:
    return f'call: {marks(OPEN)} "\\n" object "\\n" {marks(CLOSE)}\nobject: {json_calls(schemas)}'


HERMES = CallStyle(name="Hermes", starts=(OPEN,), tags=(CLOSE,), read=_read, force=_force)
