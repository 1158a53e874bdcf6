"""The bodies of requests, checked strictly, and what the engine is asked in their place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bitquilt.engines import ModelInfo
from bitquilt.models.chat_template import Message
from bitquilt.runtime.near import did_you_mean
from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.serve.structured import Structured
from bitquilt.talk.reasoning import style_of
from bitquilt.talk.sample import AnswerSettings

MAX_ROLLBACKS = AnswerSettings.max_rollbacks

Body = TypeVar("Body", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Strict):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


class CalledFunction(_Strict):
    """A function with its arguments, which are JSON in a string."""

    name: str
    arguments: str


class ToolCall(_Strict):
    """A call that the model made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    refusal: None = None

    @property
    def text(self) -> str:
        """All of the content."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class FunctionDefinition(_Strict):
    """The function that a tool calls."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(_Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class MarkdownRequest(_Strict):
    """An answer, whole or as far as it has come, that the chat page shows."""

    text: str


class StreamOptions(_Strict):
    """How an answer is streamed."""

    include_usage: bool = False


class CompletionRequest(Structured, _Strict):
    """The fields of every request for text.

    Fields of OpenAI's API that change no answer are accepted and ignored.
    """

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    detect_loops: bool = True
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError("at most 16 stop texts can be given")
        return stop

    def settings(self, info: ModelInfo, most: int) -> AnswerSettings:
        """How to answer; what the request leaves out is the model's own recommendation.

        Args:
            info: the model.
            most: the most tokens that one answer may have.
        """
        names = ("temperature", "top_p", "top_k", "min_p", "seed", *PENALTIES)
        stated = {name: value for name in names if (value := getattr(self, name)) is not None}
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return AnswerSettings(
            sampling=replace(info.sampling, **stated),
            max_tokens=min(self._limit() or most, most),
            think_budget=self._think_budget(),
            stop=stop,
            max_rollbacks=MAX_ROLLBACKS if self.detect_loops else None,
            grammar=self.answer_grammar(),
        )

    def _limit(self) -> int | None:
        return self.max_tokens

    def _think_budget(self) -> int | None:
        return None


PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


class ChatRequest(CompletionRequest):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    think_budget: int | None = Field(None, ge=0)
    tools: list[ToolDefinition] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None

    def conversation(self, template: str | None) -> list[Message]:
        """The messages in the form that a chat template takes.

        A model that does not mark its reasoning gets it back as part of what it said.
        """
        unmarked = not style_of(template, "").tags
        return [_message(message, unmarked) for message in self.messages]

    def offered(self, template: str | None) -> list[dict[str, Any]]:
        """The tools that the model may call.

        Raises:
            RefusedError: the model's template has no place for tools.
        """
        if not self.tools or self.tool_choice == "none":
            return []
        if "tools" not in (template or ""):
            raise invalid("the chat template of this model takes no tools; ask without them")
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    def _limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _think_budget(self) -> int | None:
        return self.think_budget


class TextRequest(CompletionRequest):
    """``POST /v1/completions``."""

    prompt: str = Field(min_length=1)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


def parse_request(kind: type[Body], body: bytes) -> Body:
    """Read a request's body.

    Raises:
        RefusedError: it is not JSON, or it has a field or a value that is not understood.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        # of several alternatives that failed, the one that was read furthest was meant
        meant = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        place = ".".join(str(step) for step in meant["loc"])
        unknown = meant["type"] == "extra_forbidden" and len(meant["loc"]) == 1
        hint = did_you_mean(place, kind.model_fields) if unknown else ""
        raise invalid(f"{place or 'the body'}: {meant['msg']}{hint}") from error


def check_model(asked: str | None, name: str) -> None:
    """Refuse a request for another model."""
    if asked not in (None, name):
        raise RefusedError(
            404, "invalid_request_error", f"this server has no model {asked!r}; ask for {name!r}"
        )


def _message(message: ChatMessage, unmarked: bool) -> Message:
    role = "system" if message.role == "developer" else message.role
    put: dict[str, Any] = {"role": role, "content": message.text}
    if message.reasoning_content:
        if unmarked:
            put["content"] = message.reasoning_content + message.text
        else:
            put["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        put["tool_calls"] = [_call(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            put[name] = value
    return put


def _call(call: ToolCall) -> Mapping[str, Any]:
    """A tool call for a template, which writes the arguments as JSON itself."""
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError as error:
        raise invalid(f"the arguments of tool call {call.id!r} are not JSON: {error}") from error
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
