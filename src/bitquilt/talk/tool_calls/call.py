"""What the families' ways to write tool calls have in common: calls, styles, and their reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bitquilt.models.chat_template import Tool
from bitquilt.talk.reasoning import overlap

Schemas = Mapping[str, Mapping[str, Any]]
"""The name of each tool that may be called → the JSON schema of its arguments."""
LONG = 1000
_CLOSING = frozenset("}])>")


@dataclass(frozen=True)
class Call:
    """A function that the model wants called."""

    name: str
    arguments: str
    """A JSON object."""

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any]) -> Call:
        """Write the arguments as JSON."""
        return cls(name, json.dumps(arguments, ensure_ascii=False))


@dataclass(frozen=True)
class Found:
    """What stands at the beginning of a text."""

    length: int
    """So many characters belong to it."""
    calls: Sequence[Call] = ()


class AnswerReader(Protocol):
    """Takes calls out of a stream of text, however it is cut; everything else stays text."""

    def push(self, text: str) -> Iterator[str | Call]:
        """Take more of the answer; returns the text and the calls that are certain by now."""
        ...

    def rest(self) -> Iterator[str | Call]:
        """End the answer; returns what was held back."""
        ...


class ToolStyle(Protocol):
    """How a model writes tool calls."""

    @property
    def name(self) -> str:
        """The family, for sentences."""
        ...

    @property
    def marks(self) -> tuple[str, ...]:
        """Control tokens in these texts are part of the answer."""
        ...

    @property
    def force(self) -> Callable[[Schemas, Marks], str] | None:
        """Writes the rule ``call``, of a call of one of some tools, in Lark; None if nobody can."""
        ...

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        """Begin to read an answer of a model that may call these tools."""
        ...


NO_CALL = Found(0)
"""The text begins like a call, and is none."""

Read = Callable[[str, Schemas, bool], "Found | None"]
"""Reads a text that begins like a call, given the tools and whether the text is over; None where
more text is needed to tell."""
Marks = Callable[[str], str]
"""A tag → the same in Lark, for a model's tokens."""


@dataclass(frozen=True, kw_only=True)
class CallStyle:
    """How a family of models writes tool calls: a :class:`ToolStyle` that is known here."""

    name: str
    starts: Sequence[str]
    """Each call begins with one of these texts."""
    read: Read
    force: Callable[[Schemas, Marks], str] | None
    tags: Sequence[str] = ()
    """Texts whose control tokens belong to the calls; ``starts`` are such texts too."""
    first: Sequence[str] = ()
    """Calls begin with these texts as well, if nothing but calls has come before."""
    between: str = ""
    """Characters that separate calls, and are left out after one."""

    @property
    def marks(self) -> tuple[str, ...]:
        """See :class:`ToolStyle`."""
        return (*self.starts, *self.tags)

    def reader(self, tools: Sequence[Tool]) -> AnswerReader:
        """See :class:`ToolStyle`."""
        return CallReader(self, schemas_of(tools))


class CallReader:
    """Reads answers in one of our styles."""

    def __init__(self, style: CallStyle, schemas: Schemas) -> None:
        self._style, self._schemas = style, schemas
        self._held = ""
        self._only_calls = True
        """Whether nothing else has come but white space."""
        self._after_call = False

    def push(self, text: str) -> Iterator[str | Call]:
        """Take more of the answer; returns the text and the calls that are certain by now."""
        self._held += text
        # a long call is read again only where its end may have come
        if len(self._held) < LONG or not _CLOSING.isdisjoint(text):
            yield from self._take(over=False)

    def rest(self) -> Iterator[str | Call]:
        """End the answer; returns what was held back."""
        yield from self._take(over=True)

    def _take(self, over: bool) -> Iterator[str | Call]:
        while self._held:
            if self._after_call:
                self._held = self._held.lstrip(self._style.between)
                if not self._held:
                    return
            start = self._start()
            if start is None:
                yield from self._say(len(self._held) - (0 if over else self._pending()))
                return
            yield from self._say(start)
            found = self._style.read(self._held, self._schemas, over)
            if found is None and not over:
                return
            if found is None or not found.length:
                yield from self._say(1)
                continue
            self._held = self._held[found.length :]
            self._after_call = bool(found.calls and self._style.between)
            yield from found.calls

    def _start(self) -> int | None:
        """Where a call may begin next."""
        places = [self._held.find(start) for start in self._style.starts]
        blank = len(self._held) - len(self._held.lstrip())
        if self._only_calls and self._held.startswith(tuple(self._style.first), blank):
            places.append(blank)
        return min((place for place in places if place >= 0), default=None)

    def _pending(self) -> int:
        """How many characters at the end may be the beginning of a start."""
        known = [overlap(self._held, start) for start in self._style.starts]
        bare = self._held.strip()
        if (self._only_calls and self._style.first and not bare) or (
            self._only_calls and any(start.startswith(bare) for start in self._style.first)
        ):
            known.append(len(self._held))
        return max(known, default=0)

    def _say(self, length: int) -> Iterator[str]:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            self._only_calls = self._only_calls and not text.strip()
            self._after_call = False
            yield text


def schemas_of(tools: Sequence[Tool]) -> dict[str, Mapping[str, Any]]:
    """The name of each tool, and the schema of its arguments."""
    functions = [tool["function"] for tool in tools]
    return {one["name"]: one.get("parameters") or {"type": "object"} for one in functions}
