"""Answers in the form of OpenAI's API: chunks of a stream from events, or one reply from the end.

Fields that this API does not have are under ``bitquilt``: rollbacks and closings as they happen,
and how the answer ended.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from bitquilt.serve.tools import Call, CallReader
from bitquilt.talk.events import Answer, Closing, End, Event, Reasoning, Rollback

Json = dict[str, Any]

FINISH = {"stop": "stop", "length": "length", "loop": "length"}
"""OpenAI's word for each way to end. It has none for a loop; a looping answer was cut off too."""


class ChatReply:
    """``/v1/chat/completions``."""

    def __init__(self, model: str, tools: bool) -> None:
        """Begin a reply; with ``tools``, calls are looked for in the answer."""
        self._head = _head("chatcmpl", model)
        self._tools = tools
        self._reader = CallReader()
        self._calls = 0
        self._content = False

    def first(self) -> Json:
        """The chunk before all others."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self, event: Event) -> Iterator[Json]:
        """The chunks that tell an event."""
        match event:
            case Reasoning(text):
                yield self._chunk({"reasoning_content": text})
            case Answer(text):
                yield from self._say(self._reader.push(text) if self._tools else [text])
            case Rollback():
                # every client has heard what is taken back; our page can remove it
                yield self._chunk({}, bitquilt={"rollback": asdict(event)})
                self._reader = CallReader()
                list(self._reader.push(event.answer))
            case Closing(reason):
                yield self._chunk({}, bitquilt={"closing": reason})
            case End():
                yield from self._say(self._reader.rest())
                if not (self._content or self._calls):
                    # no answer could be told apart, so everything is the answer
                    yield from self._say([event.answer] if event.answer else [])
                finish = "tool_calls" if self._calls else FINISH[event.finish_reason]
                yield self._chunk({}, finish, bitquilt=end_fields(event))

    def usage(self, end: End) -> Json:
        """The last chunk, with the usage, for requests that want it."""
        return {**self._head, "choices": [], "usage": usage(end)}

    def whole(self, end: End) -> Json:
        """The whole answer in one reply."""
        reader = CallReader()
        parts = [*reader.push(end.answer), *reader.rest()] if self._tools else [end.answer]
        calls = [part for part in parts if isinstance(part, Call)]
        message: Json = {
            "role": "assistant",
            "content": "".join(part for part in parts if isinstance(part, str)),
            "reasoning_content": end.reasoning or None,
        }
        if calls:
            message["content"] = message["content"].strip() or None
            message["tool_calls"] = [_call(call) for call in calls]
        finish = "tool_calls" if calls else FINISH[end.finish_reason]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage(end),
            "bitquilt": end_fields(end),
        }

    def _say(self, parts: Any) -> Iterator[Json]:
        for part in parts:
            if isinstance(part, Call):
                yield self._chunk({"tool_calls": [{"index": self._calls, **_call(part)}]})
                self._calls += 1
            elif self._content or not self._tools or part.strip():
                self._content = True
                yield self._chunk({"content": part})

    def _chunk(self, delta: Json, finish: str | None = None, **more: Any) -> Json:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **more}


class TextReply:
    """``/v1/completions``."""

    def __init__(self, model: str) -> None:
        self._head = {**_head("cmpl", model), "object": "text_completion"}

    def first(self) -> None:
        """Nothing: no chunk comes before the text."""

    def chunks(self, event: Event) -> Iterator[Json]:
        """The chunks that tell an event."""
        match event:
            case Answer(text):
                yield self._choice(text)
            case Rollback():
                yield self._choice("", bitquilt={"rollback": asdict(event)})
            case End():
                yield self._choice("", FINISH[event.finish_reason], bitquilt=end_fields(event))

    def usage(self, end: End) -> Json:
        """The last chunk, with the usage, for requests that want it."""
        return {**self._head, "choices": [], "usage": usage(end)}

    def whole(self, end: End) -> Json:
        """The whole answer in one reply."""
        more = {"usage": usage(end), "bitquilt": end_fields(end)}
        return self._choice(end.answer, FINISH[end.finish_reason], **more)

    def _choice(self, text: str, finish: str | None = None, **more: Any) -> Json:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        return {**self._head, "choices": [choice], **more}


def usage(end: End) -> Json:
    """The numbers of tokens in OpenAI's form; tokens that were taken back do not count."""
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.tokens,
        "total_tokens": end.prompt_tokens + end.tokens,
        "completion_tokens_details": {"reasoning_tokens": end.thinking_tokens},
    }


def end_fields(end: End) -> Json:
    """How an answer ended, for ``bitquilt``."""
    names = ("finish_reason", "final", "closed", "rollbacks", "discarded_tokens")
    return {name: getattr(end, name) for name in names}


def _head(prefix: str, model: str) -> Json:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
