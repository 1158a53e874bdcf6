"""The bodies of requests in OpenAI's API, and what the engine is asked in their place.

What OpenAI, vLLM and llama.cpp take is taken. A field that none of them has is left out, and the
client is told: a misspelt setting would go unnoticed otherwise. A server may also refuse it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bitquilt.engines import ModelInfo
from bitquilt.models.chat_template import Message, template_variables
from bitquilt.runtime.near import did_you_mean
from bitquilt.serve.errors import invalid, not_understood
from bitquilt.serve.mending import THINKING_SWITCHES, mended_json, mended_thinking
from bitquilt.serve.messages import ChatMessage, Lenient, text_only
from bitquilt.serve.structured import Structured
from bitquilt.serve.tools import Offer, ToolDefinition, is_other_tool, offer
from bitquilt.talk.prompt import Turn
from bitquilt.talk.reasoning import PLAIN, style_of
from bitquilt.talk.sample import AnswerSettings

MAX_ROLLBACKS = AnswerSettings.max_rollbacks
MOST_ANSWERS = 256
"""One request may want so many answers: prompts, times ``n``."""
MOST_STOPS = 128
"""Clients for role play send one for each name and mark."""
MOST_LOGPROBS = 20
FORBIDDING = -100.0
"""A bias that no token survives."""
MOST_BIAS = 1e6
"""A bias that is larger says no more, and leaves float32's range."""
LEAST_PENALTY = 0.01
"""Logits divided by less would be infinite."""
TOLD_FIELDS, TOLD_LENGTH = 16, 64
"""So many unknown fields are named in the header of a response, each by so many characters."""
SEEDS = 1 << 63

Body = TypeVar("Body", bound=Lenient)

IDLE = frozenset(
    (
        *("audio", "include", "metadata", "modalities", "prediction", "prompt_cache_key"),
        *("prompt_cache_retention", "safety_identifier", "service_tier", "store", "truncation"),
        *("user", "verbosity", "web_search_options"),  # OpenAI's
        *("add_special_tokens", "cache_salt", "priority", "request_id", "skip_special_tokens"),
        *("spaces_between_special_tokens",),  # vLLM's
        *("cache_prompt", "id_slot", "return_progress", "timings_per_token"),  # llama.cpp's
    )
)
"""Fields of OpenAI's API, vLLM's and llama.cpp's that change no answer of this server."""


class MarkdownRequest(Lenient):
    """An answer, whole or as far as it has come, that the chat page shows."""

    text: str


class StreamOptions(Lenient):
    """How an answer is streamed."""

    include_usage: bool = False


class CompletionRequest(Structured):
    """The fields of every request for text."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(
        None,
        ge=0,
        le=100,
        validation_alias=AliasChoices("repetition_penalty", "repeat_penalty"),
    )
    frequency_penalty: float | None = Field(None, ge=-100, le=100)
    presence_penalty: float | None = Field(None, ge=-100, le=100)
    seed: int | None = Field(None, ge=-SEEDS, lt=2 * SEEDS)
    max_tokens: int | None = Field(
        None, ge=-1, validation_alias=AliasChoices("max_tokens", "n_predict")
    )
    stop: list[str] = Field(default_factory=list, max_length=MOST_STOPS)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    detect_loops: bool = True

    @field_validator("stop", mode="before")
    @classmethod
    def _many(cls, stop: Any) -> Any:
        if isinstance(stop, list):
            return [one for one in stop if one is not None]
        return [stop] if isinstance(stop, str) else stop

    @field_validator("repetition_penalty")
    @classmethod
    def _divides(cls, penalty: float) -> float:
        if 0 < penalty < LEAST_PENALTY:
            raise ValueError(f"it is 0 for none, or from {LEAST_PENALTY} to 100")
        return penalty

    @field_validator("logit_bias")
    @classmethod
    def _within(cls, bias: dict[int, float]) -> dict[int, float]:
        return {token: max(-MOST_BIAS, min(MOST_BIAS, value)) for token, value in bias.items()}

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, bias: Any) -> Any:
        """Read llama.cpp's pairs, too; its false forbids a token."""
        if isinstance(bias, dict):
            bias = list(bias.items())
        if not isinstance(bias, list) or not all(isinstance(p, list | tuple) for p in bias):
            return bias
        if any(len(pair) != 2 for pair in bias):
            raise ValueError("a bias is a token and a number")
        return {token: FORBIDDING if value is False else value for token, value in bias}

    @property
    def unknown(self) -> list[str]:
        """The names of fields that mean nothing here."""
        return sorted(set(self.model_extra or ()) - IDLE)

    def settings(self, info: ModelInfo, most: int) -> list[AnswerSettings]:
        """How to answer, ``n`` times; what is left out is the model's own recommendation.

        Args:
            info: the model.
            most: the most tokens that one answer may have.

        Raises:
            RefusedError: a token of ``logit_bias`` is none of the model's.
        """
        if foreign := [token for token in self.logit_bias if not 0 <= token < info.vocabulary]:
            raise invalid(
                f"logit_bias: the token {foreign[0]} is none of the model's {info.vocabulary:,}"
            )
        stated = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if self.top_k == -1:  # vLLM's word for no limit
            stated["top_k"] = 0
        if self.repetition_penalty == 0:  # clients of llama.cpp mean none
            stated["repetition_penalty"] = 1.0
        # -1 is llama.cpp's word for another seed each time
        seed = random.getrandbits(31) if self.seed in (None, -1) else self.seed % SEEDS
        wanted = self._limit()
        settings = AnswerSettings(
            sampling=replace(info.sampling, **stated, seed=seed),
            max_tokens=most if wanted is None or wanted < 0 else min(wanted, most),
            think_budget=self._think_budget(info.chat_template),
            stop=self.stop,
            max_rollbacks=MAX_ROLLBACKS if self.detect_loops else None,
            grammar=self.answer_grammar(),
            logit_bias=tuple(self.logit_bias.items()),
            scores=self._scores(),
            score_prompt=self._scores_prompt(),
        )
        return [
            replace(settings, sampling=replace(settings.sampling, seed=seed + number))
            for number in range(self.n)
        ]

    def _limit(self) -> int | None:
        return self.max_tokens

    def _think_budget(self, template: str | None) -> int | None:
        return None

    def _scores(self) -> int | None:
        """How many of the likeliest tokens are told with each; None for no scores."""
        return None

    def _scores_prompt(self) -> bool:
        return False


SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


class ChatRequest(CompletionRequest):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=-1)
    think_budget: int | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("think_budget", "thinking_budget", "thinking_token_budget"),
    )
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What else the chat template is given."""
    enable_thinking: bool | None = None
    thinking: dict[str, Any] = Field(default_factory=dict)
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] = Field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[ToolDefinition] = Field(default_factory=list)
    other_tools: list[str] = Field(default_factory=list, exclude=True)
    """The types of tools that are no functions: OpenAI's server runs them itself, this one none."""
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_functions(cls, fields: Any) -> Any:
        """Read tools as OpenAI's API had them before they were called so; set others apart."""
        if not isinstance(fields, dict):
            return fields
        if isinstance(known := fields.get("functions"), list):
            fields = {"tools": [{"function": one} for one in known], **fields}
            del fields["functions"]
            if (choice := fields.pop("function_call", None)) is not None:
                fields = {"tool_choice": choice, **fields}
        if not isinstance(tools := fields.get("tools"), list):
            return fields
        others = [one for one in tools if is_other_tool(one)]
        functions = [one for one in tools if one not in others]
        return {**fields, "tools": functions, "other_tools": [str(one["type"]) for one in others]}

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, fields: Any) -> Any:
        return mended_thinking(fields) if isinstance(fields, dict) else fields

    @property
    def unknown(self) -> list[str]:
        """The names of fields and of tools that mean nothing here."""
        others = dict.fromkeys(f"tools.{kind}" for kind in self.other_tools)
        return [*super().unknown, *others]

    def conversation(self, template: str | None) -> list[Message]:
        """The messages in the form that a chat template takes.

        A model that does not mark its reasoning gets it back as part of what it said.
        """
        unmarked = not style_of(template, "").tags
        said = [message.for_template(unmarked) for message in self.messages]
        last = self.messages[-1]
        empty = last.role == "assistant" and not (last.content or last.tool_calls)
        return said[:-1] if empty and len(said) > 1 else said  # a place for the answer

    def images(self, info: ModelInfo) -> list[bytes]:
        """The images of all messages, for a model that sees.

        Raises:
            RefusedError: it reads text only.
        """
        shown = [image for message in self.messages for image in message.images]
        if shown and not info.sees:
            raise invalid(f"messages: {text_only(shown[0].kind)}")
        return [image.data for image in shown]

    def turn(self) -> Turn:
        """How the prompt ends: a last message of the assistant is continued if nothing is said."""
        last = self.messages[-1]
        begun = last.role == "assistant" and bool(last.content) and not last.tool_calls
        continued = self.continue_final_message
        if continued is None:
            continued = begun and self.add_generation_prompt is None
        variables: dict[str, Any] = {}
        if (effort := self._effort()) is not None:
            variables["reasoning_effort"] = effort
        if (thinks := self._thinks()) is not None:
            variables |= dict.fromkeys(THINKING_SWITCHES, thinks)
        if self.documents is not None:
            variables["documents"] = self.documents
        return Turn(
            opened=self.add_generation_prompt is not False,
            continued=continued,
            variables=variables | self.chat_template_kwargs,
        )

    def _effort(self) -> str | None:
        effort = self.reasoning_effort or self.reasoning.get("effort")
        return effort if isinstance(effort, str) else None

    def _thinks(self) -> bool | None:
        """Whether the model shall think; None leaves it to its template."""
        stated = [self.chat_template_kwargs.get(name) for name in THINKING_SWITCHES]
        stated += [self.enable_thinking, self.reasoning.get("enabled")]
        if self._effort() == "none" or self.thinking.get("type") == "disabled":
            stated.append(False)
        return next((value for value in stated if isinstance(value, bool)), None)

    def offered(self, info: ModelInfo) -> Offer:
        """The tools that the model may call.

        Raises:
            RefusedError: ``tool_choice`` makes no sense, or the model's way to call is unknown.
        """
        tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
        return offer(info, tools, self.tool_choice)

    def _limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _think_budget(self, template: str | None) -> int | None:
        """The budget; none is left where a model shall not think whose template has no switch."""
        if self._thinks() is not False or template is None:
            return self.think_budget
        switched = template_variables(template) & set(THINKING_SWITCHES)
        return self.think_budget if switched or style_of(template, template) == PLAIN else 0

    def _scores(self) -> int | None:
        return self.top_logprobs if self.logprobs or self.top_logprobs else None


class TokenizeRequest(ChatRequest):
    """``POST /tokenize``, as in vLLM, and as in llama.cpp."""

    messages: list[ChatMessage] = Field(default_factory=list)
    prompt: str | None = None
    content: str = ""
    add_special_tokens: bool = True
    """What vLLM does with a prompt."""
    add_special: bool = False
    """What llama.cpp does with content."""

    def text(self) -> tuple[str, bool]:
        """The text, and whether special tokens are put around it."""
        if self.prompt is not None:
            return self.prompt, self.add_special_tokens
        return self.content, self.add_special


class DetokenizeRequest(Lenient):
    """``POST /detokenize``, as in vLLM and in llama.cpp."""

    tokens: list[int]


class ModelRequest(Lenient):
    """A request about a model, by one of two names of the field."""

    model: str | None = None
    name: str | None = None


class TextRequest(CompletionRequest):
    """``POST /v1/completions``."""

    prompt: list[str] | list[list[int]] = Field(min_length=1)
    """Texts, or the ids of their tokens."""
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    add_special_tokens: bool = True
    """Put a start token before texts, where the tokenizer does so."""
    suffix: str = ""
    best_of: int | None = None

    @field_validator("suffix")
    @classmethod
    def _unread(cls, suffix: str) -> str:
        if suffix:
            raise ValueError("this server cannot fill in text before a suffix; leave suffix out")
        return suffix

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, prompt: Any) -> Any:
        """Read one prompt as a list of one."""
        if not isinstance(prompt, str | list):
            raise ValueError("it is neither a text, nor a list of texts or of the ids of tokens")
        one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if one else prompt

    @model_validator(mode="after")
    def _few(self) -> TextRequest:
        if not all(self.prompt):
            raise ValueError("a prompt is empty")
        if self.best_of is not None and self.best_of > self.n:
            raise ValueError(
                "this server does not choose among answers; ask for all of them with n, and "
                "without best_of"
            )
        if len(self.prompt) * self.n > MOST_ANSWERS:
            raise ValueError(f"at most {MOST_ANSWERS} answers can be wanted at once")
        return self

    def _scores(self) -> int | None:
        return self.logprobs

    def _scores_prompt(self) -> bool:
        return self.echo and self.logprobs is not None


def parse_request(kind: type[Body], body: bytes | Mapping[str, Any], strict: bool = False) -> Body:
    """Read a request's body.

    Args:
        kind: of the request.
        body: JSON, or the fields that it stands for.
        strict: whether a field that means nothing here is refused.

    Raises:
        RefusedError: it is not JSON, or it has a value that is not understood.
    """
    try:
        asked = _read_json(kind, body) if isinstance(body, bytes) else kind.model_validate(body)
    except ValidationError as error:
        # of several alternatives that failed, the one that was read furthest was meant
        meant = max(error.errors(include_url=False), key=lambda one: len(one["loc"]))
        raise invalid(not_understood(meant)) from error
    if unknown := getattr(asked, "unknown", ()):
        _tell(unknown, kind, strict)
    return asked


def _read_json(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        if (fields := mended_json(body)) is None:
            raise
        return kind.model_validate(fields)


def _tell(unknown: Sequence[str], kind: type[Body], strict: bool) -> None:
    """Log, or refuse, the names of fields that mean nothing here."""
    near = did_you_mean(unknown[0], kind.model_fields)
    if strict:
        raise invalid(f"{_shown(unknown[0])}: this server has no such field{near}")
    names = ", ".join(map(_shown, unknown))
    logging.getLogger(__name__).warning(
        "a request has fields that mean nothing here, which are ignored: %s%s", names, near
    )


def ignored_header(unknown: Sequence[str]) -> Mapping[str, str]:
    """The header that tells a client which of its fields were ignored; none for none."""
    names = [_shown(name) for name in unknown[:TOLD_FIELDS]]
    return {"Bitquilt-Ignored": ", ".join(names)} if names else {}


def _shown(name: str) -> str:
    """A stranger's name, safe for a header and a log."""
    plain = name.isascii() and name.isprintable()
    return (name if plain else ascii(name))[:TOLD_LENGTH]


def is_other(asked: str | None, name: str) -> bool:
    """Whether a request names another model; Ollama's clients name the version, too."""
    return asked is not None and asked.removesuffix(":latest") not in ("", name)


def check_model(asked: str | None, name: str) -> None:
    """Refuse a request for another model."""
    if is_other(asked, name):
        raise invalid(f"this server has no model {asked!r}; ask for {name!r}", 404)
