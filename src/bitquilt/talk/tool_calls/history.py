"""Conversations with tool calls and their results, as each chat template wants them.

Templates differ: some write the arguments as JSON and want an object, some want the JSON; some
take one call in a message, some none at all. Rendering a small conversation of marks shows which.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError, Message, Tool

KEY, VALUE, NAME, RESULT = "probed_key", "probed value", "probed_name", "probed result"
_IDS = ("abcdef123", "abcdef124")
_NINE = re.compile(r"length\s*!=\s*9|length\s*==\s*9")
_TOOLS_IN_MESSAGE = re.compile(r"message\[['\"]tools['\"]\]|message\.tools\b")
_ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class _Abilities:
    """What a chat template does with tool calls."""

    arguments: type[dict[str, Any]] | type[str] | None
    """Whether it wants the arguments as an object or as JSON; None if it does not show calls."""
    results: bool
    """Whether it shows results."""
    several: bool
    """Whether a message may have several calls."""
    written: str
    """How it writes a call of ``NAME`` with ``KEY`` and ``VALUE``; empty if it shows no calls."""


def for_template(
    source: str,
    messages: Sequence[Message],
    tools: Sequence[Tool],
    special_tokens: Mapping[str, str],
) -> list[Message]:
    """The conversation in a form that a chat template shows completely.

    Args:
        source: of the chat template.
        messages: the conversation; arguments are objects.
        tools: functions that the model may call.
        special_tokens: ``bos_token`` and ``eos_token``.
    """
    said = list(messages)
    if tools and _TOOLS_IN_MESSAGE.search(source):
        said = _with_tools(said, tools)
    if not any(message.get("tool_calls") or message["role"] == "tool" for message in said):
        return said
    said = list(_named(said))
    if _NINE.search(source):
        said = [_with_short_ids(message) for message in said]
    able = _abilities(source, tuple(sorted(special_tokens.items())))
    if able.arguments is None or not able.results:
        return [_as_text(message) for message in said]
    if not able.several:
        said = list(_one_by_one(said))
    return [_with_json(message) for message in said] if able.arguments is str else said


@lru_cache(maxsize=16)
def _abilities(source: str, special_tokens: tuple[tuple[str, str], ...]) -> _Abilities:
    template = ChatTemplate.compile(source)
    parameters = {"type": "object", "properties": {KEY: {"type": "string"}}}
    function = {"name": NAME, "description": "It probes.", "parameters": parameters}

    def shown(kind: type[Any], ids: Sequence[str]) -> str:
        arguments = {KEY: VALUE} if kind is dict else json.dumps({KEY: VALUE})
        calls = [
            {"id": one, "type": "function", "function": {"name": NAME, "arguments": arguments}}
            for one in ids
        ]
        results = [
            {"role": "tool", "tool_call_id": one, "name": NAME, "content": RESULT} for one in ids
        ]
        messages: list[Message] = [
            {"role": "user", "content": "Probe."},
            {"role": "assistant", "content": "", "tool_calls": calls},
            *results,
        ]
        tools = [{"type": "function", "function": function}]
        with suppress(ChatTemplateError):
            said = template.render(messages, tools, True, **dict(special_tokens))
            return said.rpartition("Probe.")[2]
        return ""

    kinds: tuple[type[dict[str, Any]] | type[str], ...] = (dict, str)
    for kind in kinds:
        text = shown(kind, _IDS[:1])
        if _right(text):
            several = shown(kind, _IDS).count(VALUE) == 2
            return _Abilities(kind, RESULT in text, several, text)
    return _Abilities(None, False, False, "")


def written_call(source: str, special_tokens: Mapping[str, str]) -> str:
    """How a chat template writes the call ``NAME`` with ``KEY`` and ``VALUE``, among other text.

    Returns:
        The text; empty where the template does not show calls.
    """
    return _abilities(source, tuple(sorted(special_tokens.items()))).written


def _right(text: str) -> bool:
    """Whether arguments are there, and are neither JSON in JSON nor Python."""
    wrong = (f'\\"{KEY}\\"', f"'{KEY}': '{VALUE}'")
    return KEY in text and VALUE in text and not any(one in text for one in wrong)


def _with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Put the tools into the system message, where Phi-4's template looks for them."""
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "tools": functions}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": functions}, *messages]


def _named(messages: Sequence[Message]) -> Iterator[Message]:
    """Give results the names of their calls, by which some templates tell them."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id", "")] = call["function"]["name"]
        known = names.get(message.get("tool_call_id", ""))
        if message["role"] == "tool" and known and not message.get("name"):
            message = {**message, "name": known}
        yield message


def _with_short_ids(message: Message) -> Message:
    """Ids of nine letters and digits, as Mistral's templates insist on; others are hashed."""
    changed = dict(message)
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {**call, "id": short_id(call["id"])} for call in message["tool_calls"]
        ]
    if message.get("tool_call_id"):
        changed["tool_call_id"] = short_id(message["tool_call_id"])
    return changed


def short_id(stated: str) -> str:
    """The same id where it has nine letters and digits already, else nine that depend on it."""
    if re.fullmatch(r"[0-9A-Za-z]{9}", stated):
        return stated
    digest = hashlib.sha256(stated.encode()).digest()
    return "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest[:9])


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """Give each call a message of its own, followed by its result."""
    results = {one.get("tool_call_id"): one for one in messages if one["role"] == "tool"}
    told: set[int] = set()
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            if id(message) not in told:
                yield message
            continue
        for place, call in enumerate(calls):
            yield {**message, "tool_calls": [call], **({"content": ""} if place else {})}
            if (result := results.get(call.get("id"))) is not None:
                told.add(id(result))
                yield result


def _with_json(message: Message) -> Message:
    """Arguments as the JSON of an object."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            **call,
            "function": {**call["function"], "arguments": _json(call["function"]["arguments"])},
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _as_text(message: Message) -> Message:
    """Calls and results written out, for a template that shows none."""
    if message["role"] == "tool":
        result = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": result}
    if not message.get("tool_calls"):
        return message
    functions = [
        {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message["tool_calls"]
    ]
    written = [f"<tool_call>\n{_json(one)}\n</tool_call>" for one in functions]
    content = "\n".join([*filter(None, [message.get("content")]), *written])
    return {**{k: v for k, v in message.items() if k != "tool_calls"}, "content": content}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
