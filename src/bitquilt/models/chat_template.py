"""A model's chat template: messages in, the text that the model continues out.

A chat template is a program in Jinja that comes with the model and is written for transformers.
Here it runs as transformers runs it (``utils/chat_template_utils.py``): in a sandbox, with the
tags, filters and functions that it gives templates, and with messages made of plain values. This is
the only place where bitquilt renders a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from bitquilt.errors import UserError

Message = Mapping[str, Any]
"""``{"role": "system" | "user" | "assistant" | "tool", "content": …}``; an assistant's message also
has ``reasoning_content``, which most templates leave out, and ``tool_calls``."""
Tool = Mapping[str, Any]
"""``{"type": "function", "function": {"name", "description", "parameters": JSON schema}}``."""

MOST_CHARACTERS = 1 << 26
"""No context holds a longer text, so a template that writes more does not come to an end."""
_MOST_BITS = 1 << 16
_REASON_LENGTH = 300
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names that messages give their reasoning; a template may read the first or the second."""
_ADVICE = "continue plain text with --no-chat-template"


class ChatTemplateError(UserError):
    """A chat template cannot be read, or refuses a conversation."""

    def __init__(self, subject: str, reason: str) -> None:
        """Take what happened to which template, and why: the template's own words, if it has any.

        Args:
            subject: the first half of the sentence.
            reason: the second half.
        """
        super().__init__(f"{subject}: {reason}; {_ADVICE}")
        self.reason = reason


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, ready to render."""

    source: str
    """The Jinja source, as the model comes with it."""
    model: str
    """The model's name, for error messages."""
    _compiled: jinja2.Template = field(repr=False, compare=False)

    @classmethod
    def compile(cls, source: object, model: str = "the model") -> ChatTemplate:
        """Compile a template; the same source is compiled once in a process.

        Args:
            source: Jinja source. It comes from a stranger's file and can be anything.
            model: what error messages call the model.

        Raises:
            ChatTemplateError: the source is not a string, or Jinja cannot compile it.
        """
        subject = f"the chat template of {model} cannot be read"
        if not isinstance(source, str):
            raise ChatTemplateError(subject, f"it is a {type(source).__name__} and not a text")
        try:
            return cls(source, model, _compiled(source))
        except Exception as error:  # also SyntaxError and RecursionError, from Python's compiler
            raise ChatTemplateError(subject, _reason(error)) from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: the conversation.
            tools: functions that the model may call.
            add_generation_prompt: go on to where the assistant's answer begins.
            variables: what else the template can read: ``bos_token``, ``eos_token``, and options
                of its own such as ``enable_thinking``.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails in any other way.
        """
        known = {
            "tools": [_plain(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{name: _plain(value) for name, value in variables.items()},
        }
        written: list[str] = []
        length = 0
        try:
            known["messages"] = [_message(message) for message in messages]
            for piece in self._compiled.generate(known):
                written.append(piece)
                length += len(piece)
                _require_room(length)
        except Exception as error:  # a template can raise whatever Python can
            raise ChatTemplateError(
                f"the chat template of {self.model} refuses the conversation", _reason(error)
            ) from error
        return "".join(written)


DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of templates: of the one for conversations, and of the one for those with tools."""


def default_template(stated: object) -> str | None:
    """The template for conversations, from a tokenizer's ``chat_template``.

    A tokenizer has one template, or several with names: a list of ``{"name", "template"}``, or a
    mapping. Then the one called "default" counts, as in transformers.

    Returns:
        The source; None where there is none, or where it is not a text.
    """
    if isinstance(stated, list | dict):
        return templates_by_name(stated).get(DEFAULT)
    return stated if isinstance(stated, str) and stated else None


def templates_by_name(stated: object) -> dict[str, str]:
    """All templates of a tokenizer's ``chat_template`` that have names: name → source."""
    if isinstance(stated, list):
        entries = [entry for entry in stated if isinstance(entry, dict)]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
    else:
        pairs = list(stated.items()) if isinstance(stated, dict) else []
    return {
        name: source
        for name, source in pairs
        if isinstance(name, str) and isinstance(source, str) and source
    }


@lru_cache(maxsize=64)
def template_variables(source: str) -> frozenset[str]:
    """The names that a template reads of what it is given; none if it cannot be compiled."""
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(source)))
    except Exception:  # whoever renders it is told why
        return frozenset()


class _Generation(Extension):
    """``{% generation %}``, which marks what the assistant wrote for training: its content."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block; like a macro's, its assignments stay inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, where two operators cannot take all memory or all time either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power, unless the result would be enormous."""
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    _require_room(len(text) * times)
        elif (
            isinstance(left, int)
            and isinstance(right, int)
            and left.bit_length() * right > _MOST_BITS
        ):
            raise SecurityError("it computes an enormous number")
        return super().call_binop(context, operator, left, right)


class _Namespace(Namespace):
    """``namespace(…)`` whose attributes cannot be Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _require_public(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


class _Dict:
    """``dict(…)`` and ``dict.fromkeys(…)``, and nothing else of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _message(message: Message) -> dict[str, Any]:
    """A message of plain values, without empty fields, its reasoning under both known names."""
    plain: dict[str, Any] = _plain({k: v for k, v in message.items() if v is not None})
    reasoning = next((plain[name] for name in _REASONING_FIELDS if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """Convert to JSON's types, as methods of other objects would be open to the template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _require_room(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise SecurityError(f"it writes more than {MOST_CHARACTERS:,} characters")


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"it stores {name!r} in a namespace, where names must begin differently"
        )


def _reason(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        said = f"line {error.lineno}: {error.message}"
    else:
        said = str(error)
    said = " ".join(said.split()).rstrip(".") or type(error).__name__
    return said if len(said) <= _REASON_LENGTH else said[:_REASON_LENGTH] + "…"
