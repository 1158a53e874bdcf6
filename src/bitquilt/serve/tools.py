"""Tools that a request offers: which the model may or has to call, and how its calls are read."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import field_validator, model_validator

from bitquilt.engines import Engine, ModelInfo
from bitquilt.models.chat_template import Tool
from bitquilt.serve.errors import invalid
from bitquilt.serve.messages import Lenient
from bitquilt.talk.grammar import either, without_nulls
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.tool_calls import FAMILIES, AnswerReader, Call, ToolStyle, call_style
from bitquilt.talk.tool_calls.forced import call_grammar

FORCED = ("required", "any")
"""Words of OpenAI and Mistral for a call of any tool."""
WORDS = (*FORCED, "auto", "none")
"""All words for a choice, which come as the type of an object, too."""
ID_LENGTH = 9
"""Mistral's templates take ids of nine letters and digits only, and nobody minds them."""


class FunctionDefinition(Lenient):
    """The function that a tool calls."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _said(cls, parameters: dict[str, Any]) -> Any:
        return without_nulls(parameters)


class ToolDefinition(Lenient):
    """A tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionDefinition

    @model_validator(mode="before")
    @classmethod
    def _nested(cls, fields: Any) -> Any:
        """Read a function without its wrapper, as OpenAI's API of responses has it."""
        if isinstance(fields, dict) and "function" not in fields and "name" in fields:
            return {"function": fields}
        return fields


def is_other_tool(tool: Any) -> bool:
    """Whether a tool is none that the model calls and the client runs."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and kind != "function"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The tools of one request."""

    tools: Sequence[Tool] = ()
    """What the chat template is told of."""
    style: ToolStyle | None = None
    """How the model writes calls; None where there are no tools."""
    forced: Sequence[Tool] = ()
    """The model has to call one of these, if there are any."""

    def settings(self, engine: Engine, settings: AnswerSettings) -> AnswerSettings:
        """How to answer, so that a forced call is one, and a format leaves the way to a call open.

        Raises:
            UserError: calls of this model cannot be forced, or a schema cannot be followed.
        """
        if self.style is None:
            return settings
        if self.forced:
            return replace(settings, grammar=call_grammar(engine, self.style, self.forced))
        if settings.grammar is None or self.style.force is None:
            return settings
        calls = call_grammar(engine, self.style, self.tools)
        return replace(settings, grammar=either(settings.grammar, calls))

    def reader(self) -> AnswerReader:
        """Begin to read an answer."""
        return self.style.reader(self.tools) if self.style else _Text()


NO_TOOLS = Offer()


class _Text:
    """Reads answers of models that were offered no tools."""

    def push(self, text: str) -> Iterator[str | Call]:
        yield text

    def rest(self) -> Iterator[str | Call]:
        return iter(())


def allowed_tools(tools: Sequence[Tool], choice: Any) -> tuple[Sequence[Tool], Any]:
    """The tools that OpenAI's ``tool_choice`` of that name allows, and the choice among them.

    Raises:
        RefusedError: it names no tools.
    """
    if not (isinstance(choice, dict) and choice.get("type") == "allowed_tools"):
        return tools, choice
    stated = choice.get("allowed_tools", choice)
    if not (isinstance(stated, dict) and isinstance(stated.get("tools"), list)):
        raise invalid("tool_choice.allowed_tools.tools is missing; list the tools there")
    names = [name for one in stated["tools"] for name in _named(one)]
    return [t for t in tools if t["function"]["name"] in names], stated.get("mode", "auto")


def offer(info: ModelInfo, tools: Sequence[Tool], choice: Any) -> Offer:
    """The tools that a model may call.

    Args:
        info: the model.
        tools: what the request offers.
        choice: OpenAI's ``tool_choice``: a word, or an object that names a function.

    Raises:
        RefusedError: the choice makes no sense, or the model's way to call is unknown.
    """
    tools, choice = allowed_tools(tools, choice)
    if isinstance(choice, dict) and choice.get("type") in WORDS:
        choice = choice["type"]
    forced = _forced(tools, choice)
    if not tools or choice == "none":
        return NO_TOOLS
    template = info.template(tools=True)
    if template is None:
        raise invalid("tools: the model has no chat template, so it knows none; ask without them")
    if "tools" not in template:
        raise invalid("tools: the chat template of this model takes none; ask without them")
    style = call_style(info)
    if style is None:
        raise invalid(
            "tools: by this model's chat template, the model calls tools in a way that this server "
            f"does not know; it knows those of {FAMILIES}; ask without tools"
        )
    return Offer(tools=tools, style=style, forced=forced)


def _forced(tools: Sequence[Tool], choice: Any) -> list[Tool]:
    """The tools of which one has to be called."""
    if choice in ("auto", "none", None):
        return []
    names = [tool["function"]["name"] for tool in tools]
    wanted = names if choice in FORCED else _named(choice, names)
    if missing := [name for name in wanted if name not in names]:
        raise invalid(f"tool_choice names {missing[0]!r}, which is not among the tools; offer it")
    if not wanted:
        raise invalid(f"tool_choice is {choice!r}, but there are no tools; offer some")
    return [tool for tool in tools if tool["function"]["name"] in wanted]


def _named(choice: Any, names: Sequence[str] = ()) -> list[str]:
    """The names in a ``tool_choice``: one of ``names``, or an object of any of OpenAI's APIs."""
    if choice in names:
        return [choice]
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        if isinstance(name, str):
            return [name]
    raise invalid(
        f"tool_choice {choice!r} is unknown; it is auto, none, required, or an object that names a "
        "function"
    )


def call_fields(call: Call) -> dict[str, Any]:
    """A call in the form of OpenAI's API, with an id of its own."""
    function = {"name": call.name, "arguments": call.arguments}
    letters = string.ascii_letters + string.digits
    name = "".join(secrets.choice(letters) for _ in range(ID_LENGTH))
    return {"id": name, "type": "function", "function": function}
