"""Tools over HTTP: offered, called, forced, refused, and told of in histories."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import openai
import pytest

from tests.serve.conftest import Running, running
from tests.talk import book
from tests.talk.book import Book, reciting

BODY = "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.content }}{% endfor %}|"
USER: Any = [{"role": "user", "content": "1 + 1"}]
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["a", "why"],
    "additionalProperties": False,
}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
ARGUMENTS = {"a": 1, "why": "a </tool_call> b"}
TEXT = json.dumps(ARGUMENTS)
NAMED = f'{{"name": "add", "arguments": {TEXT}}}'
WAYS = {
    "Hermes": ("<tool_call>", f"<tool_call>\n{NAMED}\n</tool_call>"),
    "Qwen3-Coder": (
        "<tool_call> <function=f>",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=why>\n"
        "a </tool_call> b\n</parameter>\n</function>\n</tool_call>",
    ),
    "Llama 3": ("<|python_tag|>", f'{{"name": "add", "parameters": {TEXT}}}'),
    "Mistral": ("[TOOL_CALLS]", f"[TOOL_CALLS][{NAMED}]"),
    "Mistral 11": ("[TOOL_CALLS] [ARGS]", f"[TOOL_CALLS]add[ARGS]{TEXT}"),
    "FunctionGemma": (
        "<start_function_call>",
        "<start_function_call>call:add{a:1,why:<escape>a </tool_call> b<escape>}"
        "<end_function_call>",
    ),
    "Granite 3": ("<|tool_call|>", f"<|tool_call|>[{NAMED}]"),
    "Phi-4": ("<|tool|> <|/tool_call|>", f"<|tool_call|>[{NAMED}]<|/tool_call|>"),
}


@contextmanager
def saying(*texts: str, sign: str) -> Iterator[Running]:
    template = BODY[:-1] + "{# " + sign + " #}~"  # some families write the bar
    with running(lambda: Book(reciting(*texts, after="~"), template)) as server:
        yield server


def called(server: Running, stream: bool = False, **asked: Any) -> tuple[list[Any], str, str]:
    """The calls of an answer, its text, and how it ended."""
    create = server.client.chat.completions.create
    reply: Any = create(
        model="model", stream=stream, **{"messages": USER, "tools": [ADD, NOW], **asked}
    )
    if not stream:
        (choice,) = reply.choices
        message = choice.message
        return message.tool_calls or [], message.content or "", choice.finish_reason
    deltas = [(chunk.choices[0].delta, chunk.choices[0].finish_reason) for chunk in reply]
    calls = [call for delta, _ in deltas for call in delta.tool_calls or []]
    return calls, "".join(delta.content or "" for delta, _ in deltas), deltas[-1][1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_every_family_come_as_calls(way: str, stream: bool) -> None:
    sign, text = WAYS[way]
    with saying(text, sign=sign) as server:
        (call,), said, finish = called(server, stream)
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert re.fullmatch(r"[0-9A-Za-z]{9}", call.id)
    assert (said, finish) == ("", "tool_calls")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "add"}}], ids=["any", "named"]
)
def test_a_forced_call_is_one_in_the_familys_own_notation(way: str, choice: Any) -> None:
    sign, text = WAYS[way]
    with saying("Two, I think.", text, sign=sign) as server:
        assert called(server)[1] == "Two, I think."
        (call,), said, finish = called(server, tool_choice=choice, parallel_tool_calls=False)
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert (said, finish) == ("", "tool_calls")


@pytest.mark.parametrize("way", WAYS)
def test_a_call_is_forced_from_a_model_that_knows_nothing(way: str) -> None:
    letters = 'abc 1,2{}"' + "\n<>:[]/=_|"
    values = {letter: 1.0 + place % 7 for place, letter in enumerate(letters)}
    properties = {"a": {"type": "integer", "maximum": 99}, "on": {"type": "boolean"}}
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    tool = {
        "function": {"name": "add", "parameters": {**parameters, "additionalProperties": False}}
    }
    template = BODY[:-1] + "{# " + WAYS[way][0] + " #}|"
    with running(lambda: Book(lambda _: values, template)) as server:
        (call,), _, _ = called(
            server, tools=[tool], tool_choice="required", temperature=1.0, seed=3, max_tokens=900
        )
    assert type(json.loads(call.function.arguments)["a"]) is int


def test_control_tokens_mark_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(book.CONTROL, book.OTHER, "[TOOL_CALLS]")
    call = f"[TOOL_CALLS][{NAMED}]"
    with saying(f"So.{call}", call, sign="[TOOL_CALLS]") as server:
        (call,), said, _ = called(server)
        assert (call.function.name, said) == ("add", "So.")
        assert "[TOOL_CALLS]" not in called(server, tools=openai.omit)[1]
        (call,), _, _ = called(server, tool_choice="required")
        assert json.loads(call.function.arguments) == ARGUMENTS


def test_a_format_leaves_the_way_to_a_call_open() -> None:
    sign, text = WAYS["Hermes"]
    formatted = {"response_format": {"type": "json_object"}}
    with saying(text, '{"a": 1}', sign=sign) as server:
        assert called(server, **formatted)[0][0].function.name == "add"
        assert called(server, tools=openai.omit, **formatted)[1] == '{"a": 1}'
        assert called(server, tool_choice="none", **formatted)[1] == '{"a": 1}'


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}}, "'sub', which is not"),
        ({"tool_choice": "always"}, "'always' is unknown"),
        ({"tool_choice": "required", "tools": []}, "there are no tools"),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"unevaluatedItems": False}},
                    }
                ],
            },
            "unevaluatedItems",
        ),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(asked: dict[str, Any], why: str) -> None:
    with (
        saying("Hi.", sign="<tool_call>") as server,
        pytest.raises(openai.BadRequestError, match=why),
    ):
        called(server, **asked)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}|", "takes none"),
        (BODY, "Hermes, Qwen"),
    ],
)
def test_tools_are_refused_where_the_way_to_call_is_unknown(template: str, why: str) -> None:
    with running(lambda: Book(reciting("Hi."), template)) as server:
        with pytest.raises(openai.BadRequestError, match=why):
            called(server)
        assert called(server, tool_choice="none")[1] == "Hi."
        assert called(server, tools=openai.omit)[1] == "Hi."


INSISTS = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}"
    "{% endfor %}{# <tool_call> #}|"
)


def test_ids_come_back_where_a_template_insists_on_nine_characters() -> None:
    with running(lambda: Book(reciting(WAYS["Hermes"][1]), INSISTS)) as server:
        (call,), _, _ = called(server)
        for name in (call.id, "call_0123456789abcdef"):
            told = {"id": name, "type": "function", "function": call.function.model_dump()}
            history = [
                *USER,
                {"role": "assistant", "content": None, "tool_calls": [told]},
                {"role": "tool", "tool_call_id": name, "content": "2"},
            ]
            assert called(server, messages=history)[0]


def test_a_template_for_tools_is_used_with_tools() -> None:
    """Some tokenizers have one template for conversations, and another for those with tools."""
    seen: list[str] = []

    def model(so_far: str) -> dict[str, float]:
        seen.append(so_far)
        return reciting(NAMED.join(("<tool_call>", "</tool_call>")))(so_far)

    def engine() -> Book:
        book = Book(model, BODY.replace("{{", "plain {{", 1))
        book.info = replace(book.info, tool_template=BODY + "{# tools <tool_call> #}")
        return book

    with running(engine) as server:
        (call,), _, _ = called(server)
        assert call.function.name == "add"
        assert "plain" not in seen[0]
        called(server, tools=[])
    assert "plain" in seen[-1]
