"""Models whose tokenizer says in its ``response_template`` what an answer is made of.

transformers reads such answers, as they come; see its ``utils/chat_parsing``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

from bitquilt.models.chat_template import Tool
from bitquilt.talk.tool_calls.call import AnswerReader, Call


def template_style(template: Mapping[str, Any]) -> TemplateStyle | None:
    """The style that a ``response_template`` describes; None if transformers cannot use it."""
    try:
        loaded = load_response_template(dict(template))
    except (ValueError, TypeError, AttributeError):
        return None
    return TemplateStyle(template) if "tool_calls" in loaded.fields else None


@dataclass(frozen=True)
class TemplateStyle:
    """A :class:`~bitquilt.talk.tool_calls.call.ToolStyle` that the tokenizer brings."""

    template: Mapping[str, Any]
    name: str = "response_template"
    force: None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """See :class:`~bitquilt.talk.tool_calls.call.ToolStyle`; of patterns, what is literal."""
        return (json.dumps(self.template, ensure_ascii=False).replace("\\", ""),)

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        """See :class:`~bitquilt.talk.tool_calls.call.ToolStyle`."""
        return _Reader(self.template, tools)


class _Reader:
    """Reads answers by transformers' parser."""

    def __init__(self, template: Mapping[str, Any], tools: Sequence[Tool]) -> None:
        self._parser = ResponseParser(dict(template), prefix="", tools=list(tools))
        self._text = ""
        self._told = 0
        self._failed = False

    def push(self, text: str) -> Iterator[str | Call]:
        """Take more of the answer; returns the text and the calls that are certain by now."""
        self._text += text
        if self._failed:
            yield self._untold()
            return
        try:
            yield from self._parts(self._parser.feed(text))
        except (ValueError, TypeError, KeyError, AttributeError):  # what the model wrote is no call
            self._failed = True
            yield self._untold()

    def rest(self) -> Iterator[str | Call]:
        """End the answer; returns what was held back."""
        if self._failed:
            return
        try:
            yield from self._parts(self._parser.finalize()[1])
        except (ValueError, TypeError, KeyError, AttributeError):
            yield self._untold()

    def _untold(self) -> str:
        """The text after what was told as text."""
        text, self._text = self._text[self._told :], ""
        self._told = 0
        return text

    def _parts(self, events: Sequence[Mapping[str, Any]]) -> Iterator[str | Call]:
        for event in events:
            if event["type"] == "region_close" and event["field"] == "tool_calls":
                value = event["value"]
                for one in value if isinstance(value, list) else [value]:
                    function = one.get("function", one)
                    arguments = function.get("arguments") or {}
                    if isinstance(arguments, str):
                        arguments = json.loads(arguments)
                    yield Call.of(function["name"], arguments)
            elif event["type"] == "region_chunk" and event["field"] != "tool_calls":
                self._told += len(event["text"])
                yield event["text"]
