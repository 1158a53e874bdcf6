"""gpt-oss: a message to ``functions.NAME`` on the commentary channel."""

from __future__ import annotations

import re

from bitquilt.talk.grammar import quoted
from bitquilt.talk.tool_calls.call import NO_CALL, CallStyle, Found, Marks, Schemas
from bitquilt.talk.tool_calls.json_text import json_value, read_arguments

_TO = r"(?:\s*to=functions\.(?P<{}>[\w.-]+))?"
_HEAD = re.compile(
    r"(?:<\|start\|>assistant)?"
    + _TO.format("role")
    + r"<\|channel\|>\s*(?P<channel>\w+)"
    + _TO.format("channelto")
    + r"\s*(?:(?:<\|constrain\|>)?\s*json)?\s*<\|message\|>"
)
_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")


def _read(text: str, schemas: Schemas, over: bool) -> Found | None:
    if (end := next((one for one in _ENDS if text.startswith(one)), None)) is not None:
        return Found(len(end))
    head = _HEAD.match(text)
    if head is None:
        return NO_CALL if _MESSAGE in text else None
    name = head["role"] or head["channelto"]
    if name is None:
        return Found(head.end())  # said to the user beside a call, or the answer
    if text[head.end() : head.end() + 1] not in ("", "{"):
        return NO_CALL
    return read_arguments(name, text, head.end())


def _force(schemas: Schemas, marks: Marks) -> str:
    each = [
        f"{marks('<|channel|>')} {quoted(f'commentary to=functions.{name} ')} "
        f'{marks("<|constrain|>")} "json" {marks("<|message|>")} {json_value(schema)}'
        for name, schema in schemas.items()
    ]
    return f'call: ({marks("<|start|>")} "assistant")? named\nnamed: {" | ".join(each)}'


HARMONY = CallStyle(
    name="gpt-oss",
    starts=("<|start|>assistant", "<|channel|>", *_ENDS),
    first=("to=functions.",),
    tags=("<|message|>", "<|constrain|>"),
    read=_read,
    force=_force,
)
