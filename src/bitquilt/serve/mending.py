"""Bodies that are JSON for most clients and servers, and none by the letter of the standard."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping
from typing import Any, NoReturn

MARKS = (BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE)
"""What Windows writes before a text."""
HALF = b"\\u"
"""What halves of characters are written with, where another program has cut an emoji in two."""


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
