"""Tool calls in an answer: JSON between ``<tool_call>`` tags, as Hermes and Qwen write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from bitquilt.talk.reasoning import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Call:
    """A function that the model wants called."""

    name: str
    arguments: str
    """A JSON object."""


def writes_calls(template: str | None) -> bool:
    """Whether a model's chat template teaches it these tags."""
    return OPEN in (template or "")


class CallReader:
    """Takes calls out of a stream of text; everything else stays text."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Iterator[str | Call]:
        """Take more of the answer; returns the text and the calls that are certain by now."""
        self._held += text
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                keep = overlap(self._held, OPEN)
                yield from _some(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                return
            yield from _some(self._held[:start])
            self._held = self._held[start:]
            end = self._held.find(CLOSE)
            if end < 0:
                return
            written, self._held = self._held[: end + len(CLOSE)], self._held[end + len(CLOSE) :]
            yield call(written[len(OPEN) : -len(CLOSE)]) or written

    def rest(self) -> Iterator[str | Call]:
        """End the answer; returns what was held back. Some models leave the last tag out."""
        held, self._held = self._held, ""
        if held.startswith(OPEN) and (found := call(held[len(OPEN) :])):
            yield found
        else:
            yield from _some(held)


def call(written: str) -> Call | None:
    """The call between two tags, if the text is ``{"name": …, "arguments": {…}}``."""
    try:
        said = json.loads(written)
        name, arguments = said["name"], said.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return Call(name, json.dumps(arguments, ensure_ascii=False))


def _some(text: str) -> Iterator[str]:
    if text:
        yield text
