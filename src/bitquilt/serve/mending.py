"""Requests that most servers understand, and that are none by the letter of a standard."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

MARKS = (BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE)
"""What Windows writes before a text."""
HALF = b"\\u"
"""What halves of characters are written with, where another program has cut an emoji in two."""
THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the variable that turns thinking on and off."""
BOOLEANS = ("true", "false")
"""What forms of settings send as texts, which templates would all take for true."""


def mended_json(body: bytes) -> Mapping[str, Any] | None:
    """Read JSON of UTF-16, with a byte order mark, or with halves of characters in its texts.

    Returns:
        The fields, with U+FFFD for each half of a character; None where the body is none of this.
    """
    if not body.startswith(MARKS) and HALF not in body:
        return None
    try:
        fields = _whole(json.loads(body, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return list(map(_whole, value))
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return value


def mended_thinking(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a chat, where texts and booleans stand for objects about thinking."""
    read = dict(fields)
    if isinstance(written := read.get("chat_template_kwargs"), str):
        with suppress(ValueError):
            read["chat_template_kwargs"] = json.loads(written or "{}")
    if isinstance(variables := read.get("chat_template_kwargs"), dict):
        words = {name: variables.get(name) for name in THINKING_SWITCHES}
        known = {name: word == "true" for name, word in words.items() if word in BOOLEANS}
        read["chat_template_kwargs"] = variables | known
    if isinstance(thinks := read.get("thinking"), bool):
        read["thinking"] = {"type": "enabled" if thinks else "disabled"}
    if isinstance(reasons := read.get("reasoning"), bool | str):
        read["reasoning"] = {"enabled" if isinstance(reasons, bool) else "effort": reasons}
    return read
