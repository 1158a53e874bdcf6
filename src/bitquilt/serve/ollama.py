"""Ollama's API, for clients that speak only that: requests of chat or plain text in other words.

Source: ``docs/api.md`` of ollama. Durations are nanoseconds; a stream is a JSON object a line.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ConfigDict, Field

from bitquilt.engines import ModelInfo, Sampling
from bitquilt.serve.errors import RefusedError, invalid
from bitquilt.serve.messages import Lenient
from bitquilt.serve.parts import AnswerParts, SpokenPart, Thought
from bitquilt.serve.responses import FINISH, Json
from bitquilt.serve.served import ServedModel
from bitquilt.serve.tools import Offer
from bitquilt.talk.events import End, Event
from bitquilt.talk.reasoning import PLAIN, style_of
from bitquilt.talk.tool_calls import Call, call_style

API_VERSION = "0.13.0"
"""The version of ollama whose API this is; clients refuse those that they find too old."""
OPTIONS = {"num_predict": "max_tokens"}
"""Ollama's names of settings → those of OpenAI's API, where they differ."""
IDLE_OPTIONS = frozenset(
    (
        *("f16_kv", "low_vram", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_keep"),
        *("num_thread", "numa", "penalize_newline", "repeat_last_n", "use_mlock", "use_mmap"),
    )
)
"""Settings of ollama's that are of its own way to run a model."""
LEFT_OUT = ("general.name", "tokenizer.chat_template")
"""What ``/api/show`` does not repeat of the header."""
FOREVER = timedelta(days=36_500)
"""The model stays for as long as the server; clients call what is so far away forever."""


class OllamaRequest(Lenient):
    """The fields of ``/api/chat`` and ``/api/generate``; those of chat are passed on."""

    model_config = ConfigDict(extra="allow")

    stream: bool = True
    options: dict[str, Any] = Field(default_factory=dict)
    format: str | dict[str, Any] = ""
    think: bool | str | None = None
    keep_alive: Any = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    prompt: str = ""
    system: str = ""
    raw: bool = False
    images: list[Any] = Field(default_factory=list)
    context: Any = None
    """Tokens of the conversation before, which ollama itself does not recommend any more."""

    def for_chat(self) -> Json:
        """The fields of the request for chat."""
        fields = {**self._settings(), "messages": [_message(one) for one in self.messages]}
        if isinstance(self.think, bool):
            fields["enable_thinking"] = self.think
        elif self.think:
            fields["reasoning_effort"] = self.think
        return fields

    @property
    def plain(self) -> bool:
        """Whether plain text is to be continued; images go where they are refused by name."""
        return self.raw and not self.images

    def for_generate(self) -> Json:
        """The fields of the request for chat with one question, or for plain text."""
        if self.plain:
            return {**self._settings(), "prompt": self.prompt}
        question = {"role": "user", "content": self.prompt, "images": self.images}
        system = [{"role": "system", "content": self.system}] if self.system else []
        asked = self.model_copy(update={"messages": [*system, question]})
        return asked.for_chat()

    def _settings(self) -> Json:
        options = {n: v for n, v in self.options.items() if n not in IDLE_OPTIONS}
        settings = {OPTIONS.get(name, name): value for name, value in options.items()}
        if isinstance(limit := settings.get("max_tokens"), int) and limit < 0:
            del settings["max_tokens"]
        if isinstance(self.format, str):
            settings |= {"response_format": _format(self.format)} if self.format else {}
        else:
            settings["json_schema"] = self.format
        return {**(self.model_extra or {}), **settings, "stream": self.stream}


def _format(stated: str) -> Json:
    """A format that is a text: the word for any JSON, or a schema that is written out.

    Raises:
        RefusedError: it is neither.
    """
    if stated == "json":
        return {"type": "json_object"}
    with suppress(ValueError):
        if isinstance(schema := json.loads(stated), dict):
            return {"type": "json_schema", "schema": schema}
    raise invalid(f'format: {stated!r} is not "json", nor a JSON schema; give one of them')


def _message(message: Json) -> Json:
    """A message of ollama's as one of chat; an image becomes a part."""
    content: Any = message.get("content")
    if images := message.get("images"):
        shown = [{"type": "image", "image": image} for image in images]
        content = [*shown, {"type": "text", "text": content}]
    names = {"tool_name": "name"}
    return {**{names.get(n, n): v for n, v in message.items()}, "content": content}


class OllamaReply:
    """The answer to ``/api/chat`` or ``/api/generate``."""

    media_type = "application/x-ndjson"

    def __init__(self, model: str, chat: bool, tools: Offer) -> None:
        """Begin a reply, with messages for ``chat``; calls of ``tools`` are looked for."""
        self._model, self._chat = model, chat
        self._parts = AnswerParts(tools)
        self._started = self._began = time.monotonic_ns()

    def first(self) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        self._began = time.monotonic_ns()
        return iter(())

    def told(self, index: int, event: Event) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        for part in self._parts.take(event):
            yield _line({**self._said([part]), "done": False})

    def last(self, ends: Mapping[int, End]) -> Iterator[str]:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        yield _line({**self._said([]), **self._done(ends[0])})

    def failed(self, error: RefusedError) -> str:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        return _line({"error": error.sentence})

    def whole(self, ends: Mapping[int, End]) -> Json:
        """See :class:`~bitquilt.serve.answering.ReplyForm`."""
        return {**self._said(self._parts.whole(ends[0])), **self._done(ends[0])}

    def loaded(self) -> Json:
        """What is said to a request without a question, which only loads the model."""
        return {**self._said([]), "done": True, "done_reason": "load"}

    def _said(self, parts: list[SpokenPart]) -> Json:
        text = "".join(part for part in parts if isinstance(part, str))
        thoughts = "".join(part.text for part in parts if isinstance(part, Thought))
        thinking = {"thinking": thoughts} if thoughts else {}
        calls = [_call(part) for part in parts if isinstance(part, Call)]
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat()}
        if not self._chat:
            return {**head, "response": text, **thinking}
        message: Json = {"role": "assistant", "content": text, **thinking}
        if calls:
            message["tool_calls"] = calls
        return {**head, "message": message}

    def _done(self, end: End) -> Json:
        now = time.monotonic_ns()
        return {
            "done": True,
            "done_reason": FINISH[end.finish_reason],
            "total_duration": now - self._started,
            "load_duration": 0,
            "prompt_eval_count": end.prompt_tokens,
            "prompt_eval_duration": self._began - self._started,
            "eval_count": end.tokens,
            "eval_duration": now - self._began,
        }


def _call(call: Call) -> Json:
    return {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _line(content: Json) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def listed(model: ServedModel) -> Json:
    """A model as ``/api/tags`` lists it."""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": model.modified.isoformat(),
        "size": model.nbytes,
        # of the name: that of gigabytes would take seconds
        "digest": hashlib.sha256(model.name.encode()).hexdigest(),
        "details": _details(model),
    }


def loaded(model: ServedModel, info: ModelInfo) -> Json:
    """A model as ``/api/ps`` lists it; it stays, and takes no memory of a GPU that is known."""
    leaving = (datetime.now(UTC) + FOREVER).isoformat()
    more = {"expires_at": leaving, "size_vram": 0, "context_length": info.context}
    return {name: v for name, v in listed(model).items() if name != "modified_at"} | more


def _details(model: ServedModel) -> Json:
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": _rounded(model.parameters),
        "quantization_level": model.file_type,
    }


def _rounded(parameters: int) -> str:
    """A number of parameters as Ollama writes it: 1.2B, 134.52M, 7B; nothing for none."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0)):
        if parameters >= unit:
            exact = parameters % unit == 0
            return f"{parameters / unit:.{0 if exact else digits}f}{letter}"
    return str(parameters or "")


def shown(model: ServedModel, info: ModelInfo) -> Json:
    """A model as ``/api/show`` describes it."""
    known = {key: value for key, value in model.metadata.items() if key not in LEFT_OUT}
    stated = asdict(info.sampling).items() - asdict(Sampling()).items()
    if model.parameters:
        known["general.parameter_count"] = model.parameters
    known.setdefault(f"{model.architecture}.context_length", info.context)
    known.setdefault(f"{model.architecture}.vocab_size", info.vocabulary)
    return {
        "modelfile": f"# This server has no other model.\nFROM {model.name}\n",
        "parameters": "\n".join(f"{name:30} {value}" for name, value in sorted(stated)),
        "template": info.chat_template or "",
        "details": _details(model),
        "model_info": known,
        "tensors": [
            {"name": name, "type": kind, "shape": shape[::-1]}  # as ggml has it
            for name, kind, shape in model.tensors
        ],
        "capabilities": _capabilities(info),
        "modified_at": model.modified.isoformat(),
    }


def _capabilities(info: ModelInfo) -> list[str]:
    """What the model can do, in Ollama's words."""
    template = info.chat_template or ""
    capabilities = ["completion"]
    if call_style(info) and "tools" in (info.template(tools=True) or ""):
        capabilities.append("tools")
    if style_of(template, template) != PLAIN:
        capabilities.append("thinking")
    if info.sees:
        capabilities.append("vision")
    return capabilities
