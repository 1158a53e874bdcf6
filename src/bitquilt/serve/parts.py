"""One answer as it comes, in the parts that every API tells apart: thoughts, text and calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitquilt.serve.tools import Offer
from bitquilt.talk.events import Answer, End, Event, Reasoning, Rollback
from bitquilt.talk.tool_calls import Call


@dataclass(frozen=True)
class Thought:
    """The next piece of the reasoning."""

    text: str


SpokenPart = Thought | str | Call


class AnswerParts:
    """Cuts one answer into parts."""

    def __init__(self, tools: Offer) -> None:
        """Begin an answer, in which calls of these tools are looked for."""
        self._tools = tools
        self._reader = tools.reader()
        self._said = self._called = False

    def take(self, event: Event) -> Iterator[SpokenPart]:
        """Return the parts that an event adds."""
        match event:
            case Reasoning(text):
                yield Thought(text)
            case Answer(text):
                yield from self._kept(self._reader.push(text))
            case Rollback():
                self._reader = self._tools.reader()
                list(self._reader.push(event.answer))
            case End():
                yield from self._kept(self._reader.rest())
                if event.answer and not (self._said or self._called):
                    yield event.answer  # no answer could be told apart, so everything is the answer

    def whole(self, end: End) -> list[SpokenPart]:
        """All parts of an answer that has ended, each text in one piece."""
        thoughts: list[SpokenPart] = [Thought(end.reasoning)] if end.reasoning else []
        reader = self._tools.reader()
        found = [*reader.push(end.answer), *reader.rest()]
        calls = [part for part in found if isinstance(part, Call)]
        text = "".join(part for part in found if isinstance(part, str))
        text = text.strip() if calls else text
        return [*thoughts, *([text] if text else []), *calls]

    def _kept(self, parts: Iterator[str | Call]) -> Iterator[str | Call]:
        """Leave white space out that nothing but calls is around."""
        for part in parts:
            if isinstance(part, Call):
                self._called = True
                yield part
            elif self._said or part.strip() or not self._tools.tools:
                self._said = True
                yield part
