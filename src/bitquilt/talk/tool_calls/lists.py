"""Granite 3 and Phi-4: a JSON list of calls after ``<|tool_call|>``."""

from __future__ import annotations

from functools import partial

from bitquilt.talk.tool_calls.call import CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import json_calls, read_json_calls

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
GRANITE_STARTS = (OPEN, "<tool_call>", "<function_call>")
PHI_STARTS = (OPEN, "functools")


def _read(starts: tuple[str, ...], close: str, text: str, _: Schemas, over: bool) -> Found | None:
    return read_json_calls(next(one for one in starts if text.startswith(one)), close, text, over)


def _force(close: str, schemas: Schemas, marks: Marks) -> str:
    after = marks(close) if close else ""
    return f'call: {marks(OPEN)} "[" object "]" {after}\nobject: {json_calls(schemas)}'


GRANITE = CallStyle(
    name="Granite 3",
    starts=GRANITE_STARTS,
    read=partial(_read, GRANITE_STARTS, ""),
    force=partial(_force, ""),
)
PHI = CallStyle(
    name="Phi-4",
    starts=PHI_STARTS,
    tags=(CLOSE,),
    read=partial(_read, PHI_STARTS, CLOSE),
    force=partial(_force, CLOSE),
)
