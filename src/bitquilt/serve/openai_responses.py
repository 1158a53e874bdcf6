"""OpenAI's Responses API, which its SDK's agents speak: items in, items out.

A request becomes one of chat: items become messages, and options get their names there. What the
server keeps of a conversation for ``previous_response_id`` is little, and the oldest goes first.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, Field, field_validator

from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.serve.messages import Lenient, thoughts_text
from bitquilt.serve.parts import AnswerParts, SpokenPart, Thought
from bitquilt.serve.responses import EVENT_STREAM, Json, sse
from bitquilt.serve.tools import Offer
from bitquilt.talk.events import End, Event
from bitquilt.talk.tool_calls import Call

KEPT_RESPONSES, KEPT_CHARACTERS = 256, 1 << 22
"""So many conversations are kept, and so much text of all together."""
CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
THOUGHTS = "reasoning_content"
RESULTS = ("function_call_output", "custom_tool_call_output")


class ResponsesRequest(Lenient):
    """``POST /v1/responses``; fields that chat has as well are passed on."""

    model_config = ConfigDict(extra="allow")

    input: list[Any] = Field(default_factory=list)
    instructions: str = ""
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] = Field(default_factory=list)
    tool_choice: Any = "auto"
    text: dict[str, Any] = Field(default_factory=dict)
    previous_response_id: str | None = None
    store: bool = True

    @field_validator("input", mode="before")
    @classmethod
    def _items(cls, given: Any) -> Any:
        if given == []:
            raise ValueError("there is nothing in it; give a text, or a list of items")
        return [{"role": "user", "content": given}] if isinstance(given, str) else given

    def messages(self) -> list[Json]:
        """The items as messages of chat.

        Raises:
            RefusedError: an item is of a kind that this server cannot read.
        """
        found: list[Json] = []
        for number, item in enumerate(self.input):
            _add_item(found, item, f"input.{number}")
        return found

    def for_chat(self, before: Sequence[Json]) -> Json:
        """The fields of the request for chat.

        Args:
            before: messages of the responses before this one.

        Raises:
            RefusedError: an item is of a kind that this server cannot read.
        """
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields = {
            **(self.model_extra or {}),
            "messages": [*system, *before, *self.messages()],
            "max_tokens": self.max_output_tokens,
            "tools": self.tools,
            "tool_choice": self.tool_choice,
            "response_format": self._format(),
        }
        # only their own message may be continued here: what follows an answer is a new one
        return {"add_generation_prompt": True, **fields}

    def _format(self) -> Json | None:
        stated = self.text.get("format")
        if not isinstance(stated, dict) or stated.get("type") != "json_schema":
            return stated
        named = {name: value for name, value in stated.items() if name != "type"}
        return {"type": "json_schema", "json_schema": named}


def _add_item(messages: list[Json], item: Any, place: str) -> None:
    """Add one item to messages; calls and reasoning join the message of their turn."""
    if isinstance(item, str):
        item = {"role": "user", "content": item}
    if not isinstance(item, dict):
        raise invalid(f"{place}: an item is a JSON object or a text")
    kind = item.get("type") or "message"
    last = messages[-1] if messages else {}
    answering = last.get("role") == "assistant"
    if kind == "message":
        said = {name: item.get(name) for name in ("role", "content")}
        if answering and said["role"] == "assistant" and last.keys() == {"role", THOUGHTS}:
            last.update(said)
        else:
            messages.append(said)
    elif kind == "reasoning":
        text = thoughts_text(item.get("content") or item.get("summary"))
        messages.append({"role": "assistant", THOUGHTS: text})
    elif kind in CALLS:
        arguments = item.get(CALLS[kind])
        if kind != "function_call":
            arguments = {"input": arguments}
        function = {"name": item.get("name"), "arguments": arguments}
        if not answering:
            messages.append({"role": "assistant"})
        call = {"id": item.get("call_id") or item.get("id"), "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind in RESULTS:
        result = {"tool_call_id": item.get("call_id"), "content": item.get("output")}
        messages.append({"role": "tool", **result})
    else:
        raise invalid(f"{place}: this server cannot read an item of type {kind!r}; leave it out")


class Conversations:
    """The messages of the last responses, by their ids."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[Json]] = OrderedDict()
        self._characters = 0

    def keep(self, name: str, messages: list[Json]) -> None:
        """Keep a conversation; forget the oldest ones if there are too many."""
        self._kept[name] = messages
        self._characters += len(str(messages))
        while len(self._kept) > KEPT_RESPONSES or (
            self._characters > KEPT_CHARACTERS and len(self._kept) > 1
        ):
            self._characters -= len(str(self._kept.popitem(last=False)[1]))

    def before(self, name: str | None) -> list[Json]:
        """The conversation up to a response; nothing for None.

        Raises:
            RefusedError: it is not kept, or not any more.
        """
        if name is None:
            return []
        if name not in self._kept:
            raise invalid(
                f"previous_response_id: {name!r} is not kept any more; send the conversation in "
                "input",
                404,
            )
        return self._kept[name]


class ResponsesReply:
    """The answer to one request, as a response with its items."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        model: str,
        asked: ResponsesRequest,
        tools: Offer,
        keep: Callable[[str, list[Json]], None],
    ) -> None:
        """Begin a reply.

        Args:
            model: its name.
            asked: the request.
            tools: whose calls are looked for in the answer.
            keep: is told the id of the response and its items as messages.
        """
        self._parts = AnswerParts(tools)
        self._keep = keep
        self._head: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "parallel_tool_calls": True,
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "text": asked.text or {"format": {"type": "text"}},
            "metadata": (asked.model_extra or {}).get("metadata") or {},
        }
        if asked.instructions:
            self._head["instructions"] = asked.instructions
        if asked.previous_response_id is not None:
            self._head["previous_response_id"] = asked.previous_response_id
        self._items: list[Json] = []
        self._open: Json | None = None
        """The item that is under way, if it is one of text."""
        self._count = 0

    def first(self) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        response = {**self._head, "status": "in_progress", "output": []}
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def told(self, index: int, event: Event) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        for part in self._parts.take(event):
            if isinstance(part, Call):
                yield from self._call(part)
            else:
                yield from self._text(part)
        if isinstance(event, End):
            yield from self._close(_status(event))

    def last(self, ends: Mapping[int, End]) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        # where something was taken back, the items are told anew
        response = self.whole(ends) if ends[0].rollbacks else self._ended(ends[0], self._items)
        yield self._event(f"response.{response['status']}", response=response)

    def failed(self, error: RefusedError) -> str:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        why = {"code": error.kind, "message": error.sentence}
        response = {**self._head, "status": "failed", "output": self._items, "error": why}
        return self._event("response.failed", response=response)

    def whole(self, ends: Mapping[int, End]) -> Json:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        return self._ended(ends[0], [_item(part) for part in self._parts.whole(ends[0])])

    def _ended(self, end: End, items: list[Json]) -> Json:
        messages: list[Json] = []
        for item in items:
            _add_item(messages, item, "output")
        self._keep(self._head["id"], messages)
        status = _status(end)
        if items and items[-1]["type"] == "message":
            items[-1]["status"] = status
        cut = status == "incomplete"
        more: Json = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        return {
            **self._head,
            "status": status,
            "output": items,
            "usage": _usage(end),
            **more,
        }

    def _call(self, call: Call) -> Iterator[str]:
        yield from self._close()
        item = _item(call)
        place = {"item_id": item["id"], "output_index": len(self._items)}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._added(begun)
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", **place, delta=call.arguments)
        yield self._event(f"{kind}.done", **place, arguments=call.arguments, name=call.name)
        yield self._done(item)

    def _text(self, part: Thought | str) -> Iterator[str]:
        thought = isinstance(part, Thought)
        if self._open is None or (self._open["type"] == "reasoning") != thought:
            yield from self._close()
            self._open = _item(Thought("") if thought else "")
            yield self._added({**self._open, "content": [], "status": "in_progress"})
            content = self._open["content"][0]
            yield self._event("response.content_part.added", **self._place(), part=content)
        text = part.text if isinstance(part, Thought) else part
        self._open["content"][0]["text"] += text
        yield self._event(f"{self._text_kind()}.delta", **self._place(), delta=text, **self._more())

    def _close(self, status: str = "completed") -> Iterator[str]:
        """End the item of text that is under way."""
        if self._open is None:
            return
        if self._open["type"] == "message":
            self._open["status"] = status
        content = self._open["content"][0]
        kind, place = self._text_kind(), self._place()
        yield self._event(f"{kind}.done", **place, text=content["text"], **self._more())
        yield self._event("response.content_part.done", **place, part=content)
        item, self._open = self._open, None
        yield self._done(item)

    def _added(self, item: Json) -> str:
        return self._event("response.output_item.added", output_index=len(self._items), item=item)

    def _done(self, item: Json) -> str:
        self._items.append(item)
        place = len(self._items) - 1
        return self._event("response.output_item.done", output_index=place, item=item)

    def _place(self) -> Json:
        assert self._open
        return {
            "item_id": self._open["id"],
            "output_index": len(self._items),
            "content_index": 0,
        }

    def _text_kind(self) -> str:
        assert self._open
        kind = "reasoning_text" if self._open["type"] == "reasoning" else "output_text"
        return f"response.{kind}"

    def _more(self) -> Json:
        return {"logprobs": []} if self._text_kind().endswith("output_text") else {}

    def _event(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._count, **fields}
        self._count += 1
        return sse(event, kind)


def _status(end: End) -> str:
    return "completed" if end.finish_reason == "stop" else "incomplete"


def _item(part: SpokenPart) -> Json:
    """A part of an answer as an item."""
    name = uuid.uuid4().hex
    if isinstance(part, Call):
        return {
            "id": f"fc_{name}",
            "type": "function_call",
            "call_id": f"call_{name[:24]}",
            "name": part.name,
            "arguments": part.arguments,
            "status": "completed",
        }
    if isinstance(part, Thought):
        content: Json = {"type": "reasoning_text", "text": part.text}
        return {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": [content]}
    content = {"type": "output_text", "text": part, "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [content],
    }


def _usage(end: End) -> Json:
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": end.tokens,
        "output_tokens_details": {"reasoning_tokens": end.thinking_tokens},
        "total_tokens": end.prompt_tokens + end.tokens,
    }
