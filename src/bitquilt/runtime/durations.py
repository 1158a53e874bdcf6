"""Times as people write them: ``90s``, ``20m``, ``1.5h``, ``1h30m``."""

from __future__ import annotations

import re

from bitquilt.errors import UserError

_SECONDS = (3600, 60, 1)
_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(text: str, option: str) -> float:
    """Read a time such as ``20m`` or ``1h30m``, and return its seconds.

    Args:
        text: hours, minutes and seconds in this order, each of which may be left out.
        option: what asks for it, for the sentence.

    Raises:
        UserError: the text is no time, or none that is longer than nothing.
    """
    match = _TIME.fullmatch(text.replace(" ", "").lower())
    parts = match.groups("0") if match else ()
    seconds = sum(float(number) * unit for number, unit in zip(parts, _SECONDS, strict=False))
    if not seconds:
        raise UserError(
            f"{option} is {text!r}, which is not a time; write it like 90s, 20m or 1h30m"
        )
    return seconds
