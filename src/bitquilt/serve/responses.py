"""Answers in the form of OpenAI's API: chunks of a stream from events, or one reply from the ends.

Fields that this API does not have are under ``bitquilt``: rollbacks and closings as they happen,
and how the answer ended. Clients send messages back as they got them, so a message has no empty
fields; in chunks, ``finish_reason`` is null up to the end, which clients wait for.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitquilt.serve.errors import RefusedError
from bitquilt.serve.logprobs import chat_logprobs, text_logprobs
from bitquilt.serve.parts import AnswerParts, Thought
from bitquilt.serve.tools import Offer, call_fields
from bitquilt.talk.events import Answer, Closing, End, Event, Rollback, Scored
from bitquilt.talk.tool_calls import Call

Json = dict[str, Any]

FINISH = {"stop": "stop", "length": "length", "loop": "length"}
"""OpenAI's word for each way to end. It has none for a loop; a looping answer was cut off too."""
EVENT_STREAM = "text/event-stream"


def sse(content: Json, event: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class _Reply:
    """What chat and plain text have in common."""

    media_type = EVENT_STREAM

    def __init__(self, prefix: str, kind: str, model: str, with_usage: bool) -> None:
        self._head: Json = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "object": kind,
        }
        self._with_usage = with_usage

    def last(self, ends: Mapping[int, End]) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        if self._with_usage:
            yield sse({**self._head, "choices": [], "usage": usage(ends)})
        yield "data: [DONE]\n\n"

    def failed(self, error: RefusedError) -> str:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        return sse(error.to_dict())

    def _whole(self, choices: list[Json], ends: Mapping[int, End], kind: str) -> Json:
        more = {"usage": usage(ends), "bitquilt": end_fields(ends[0])}
        return {**self._head, "object": kind, "choices": choices, **more}

    def _chunk(self, index: int, said: Json, finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, **said, "finish_reason": finish}
        return sse({**self._head, "choices": [choice], **more})


class ChatReply(_Reply):
    """``/v1/chat/completions``."""

    def __init__(self, model: str, tools: Offer, with_usage: bool, answers: int) -> None:
        """Begin a reply; calls of ``tools`` are looked for in the answers."""
        super().__init__("chatcmpl", "chat.completion.chunk", model, with_usage)
        self._choices = [_ChatChoice(tools) for _ in range(answers)]
        self._tools = tools

    def first(self) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        for index in range(len(self._choices)):
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def told(self, index: int, event: Event) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        if isinstance(event, Scored):
            yield self._chunk(index, {"delta": {}, "logprobs": chat_logprobs(event.scores)})
        for delta, finish, more in self._choices[index].deltas(event):
            yield self._chunk(index, {"delta": delta}, finish, **more)

    def whole(self, ends: Mapping[int, End]) -> Json:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        choices = [{"index": index, **self._choice(end)} for index, end in sorted(ends.items())]
        return self._whole(choices, ends, "chat.completion")

    def _choice(self, end: End) -> Json:
        parts = AnswerParts(self._tools).whole(end)
        message: Json = {"role": "assistant", "content": ""}
        for part in parts:
            match part:
                case Thought(text):
                    message["reasoning_content"] = text
                case Call():
                    message.setdefault("tool_calls", []).append(call_fields(part))
                case str():
                    message["content"] = part
        finish = "tool_calls" if "tool_calls" in message else FINISH[end.finish_reason]
        scored = {"logprobs": chat_logprobs(end.scores)} if end.scores else {}
        return {"message": message, "finish_reason": finish, **scored}


class _ChatChoice:
    """One answer of a stream, as changes to a message."""

    def __init__(self, tools: Offer) -> None:
        self._parts = AnswerParts(tools)
        self._calls = 0

    def deltas(self, event: Event) -> Iterator[tuple[Json, str | None, Json]]:
        """The changes that tell an event, with how the answer ended, and with fields of ours."""
        for part in self._parts.take(event):
            match part:
                case Thought(text):
                    yield {"reasoning_content": text}, None, {}
                case Call():
                    call = {"index": self._calls, **call_fields(part)}
                    self._calls += 1
                    yield {"tool_calls": [call]}, None, {}
                case str():
                    yield {"content": part}, None, {}
        match event:
            case Rollback():  # every client has heard what is taken back; our page can remove it
                yield {}, None, {"bitquilt": {"rollback": asdict(event)}}
            case Closing(reason):
                yield {}, None, {"bitquilt": {"closing": reason}}
            case End():
                finish = "tool_calls" if self._calls else FINISH[event.finish_reason]
                yield {}, finish, {"bitquilt": end_fields(event)}


@dataclass(frozen=True)
class Echo:
    """A prompt that an answer begins with."""

    text: str
    first: str | None
    """Its first token, which nothing predicts; None where the model reads a start token before it,
    which is none of the text, and so none of the tokens whose log-probabilities are told."""


NO_ECHO = Echo("", None)


class TextReply(_Reply):
    """``/v1/completions``."""

    def __init__(self, model: str, with_usage: bool) -> None:
        super().__init__("cmpl", "text_completion", model, with_usage)
        self.echo: dict[int, Echo] = {}
        """Number of an answer → the prompt that it begins with; filled in before the first
        event."""
        self._lengths: dict[int, int] = {}

    def first(self) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        for index, echo in self.echo.items():
            yield self._chunk(index, {"text": echo.text})

    def told(self, index: int, event: Event) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        match event:
            case Answer(text):
                yield self._chunk(index, {"text": text})
            case Scored(scores):
                begun = self.echo.get(index, NO_ECHO).text
                offset = self._lengths.get(index, len(begun))
                self._lengths[index] = offset + sum(len(score.text) for score in scores)
                yield self._chunk(index, {"text": "", "logprobs": text_logprobs(scores, offset)})
            case Rollback():
                said = {"rollback": asdict(event)}
                yield self._chunk(index, {"text": ""}, bitquilt=said)
            case End():
                finish = FINISH[event.finish_reason]
                yield self._chunk(index, {"text": ""}, finish, bitquilt=end_fields(event))

    def whole(self, ends: Mapping[int, End]) -> Json:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        choices = [
            {"index": index, **self._choice(index, end)} for index, end in sorted(ends.items())
        ]
        return self._whole(choices, ends, "text_completion")

    def _choice(self, index: int, end: End) -> Json:
        echo = self.echo.get(index, NO_ECHO)
        said: Json = {"text": echo.text + end.answer}
        said["finish_reason"] = FINISH[end.finish_reason]
        if end.prompt_scores or end.scores:
            scores = [*end.prompt_scores, *end.scores]
            said["logprobs"] = text_logprobs(scores, 0, echo.first)
        return said


def usage(ends: Mapping[int, End]) -> Json:
    """The numbers of tokens in OpenAI's form; tokens that were taken back do not count."""
    prompts = sum(end.prompt_tokens for end in ends.values())
    said = sum(end.tokens for end in ends.values())
    thought = sum(end.thinking_tokens for end in ends.values())
    return {
        "prompt_tokens": prompts,
        "completion_tokens": said,
        "total_tokens": prompts + said,
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


def end_fields(end: End) -> Json:
    """How an answer ended, for ``bitquilt``."""
    names = ("finish_reason", "final", "closed", "rollbacks", "discarded_tokens", "drafted_tokens")
    return {name: getattr(end, name) for name in names}
