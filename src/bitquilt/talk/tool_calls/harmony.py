"""gpt-oss: a message to ``functions.NAME`` on the commentary channel."""

from __future__ import annotations

import json
import re

from bitquilt.talk.tool_calls.call import (
    NO_CALL,
    Call,
    CallStyle,
    Found,
    Marks,
    Schemas,
    json_end,
    json_value,
)

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
    end_of_json = json_end(text, head.end())
    if end_of_json is None:
        return None
    try:
        arguments = json.loads(text[head.end() : end_of_json], strict=False)
    except ValueError:
        return NO_CALL
    return Found(end_of_json, [Call.of(name, arguments)])


def _force(schemas: Schemas, marks: Marks) -> str:
    each = [
        f"{marks('<|channel|>')} {json.dumps(f'commentary to=functions.{name} ')} "
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
