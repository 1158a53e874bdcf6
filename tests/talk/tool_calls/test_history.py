"""Histories with calls and results, in the form that each kind of template shows completely."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitquilt.models.chat_template import Message
from bitquilt.talk.prompt import render_prompt
from bitquilt.talk.tool_calls.history import for_template, short_id

TOOL: Any = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
LOOP = "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}CALL{% endfor %}"
END = "{{ m.content }}{% endfor %}"
KINDS = {
    "object, as JSON": LOOP.replace("CALL", "{{ c.function | tojson }}") + END,
    "object, by its members": LOOP.replace(
        "CALL",
        "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
        "{{ k }}: {{ v | tojson }}{% endfor %}",
    )
    + END,
    "JSON": LOOP.replace("CALL", "{{ c.function.name + c.function.arguments }}") + END,
    "one call": LOOP.replace(
        "CALL",
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{{ c.function | tojson }}",
    )
    + END,
    "no calls": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "no tool role": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('tool') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "names of results": LOOP.replace("CALL", "{{ c.function | tojson }}")
    + "{% if m.role == 'tool' %}{{ m.name + ': ' }}{% endif %}"
    + END,
    "short ids": LOOP.replace(
        "CALL",
        "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
        "{{ c.function | tojson }}{{ c.id }}",
    )
    + "{% if m.tool_call_id %}={{ m.tool_call_id }}{% endif %}"
    + END,
}


def call(name: str, city: str) -> dict[str, Any]:
    function = {"name": "sky", "arguments": {"city": city}}
    return {"id": name, "type": "function", "function": function}


def history(*cities: str) -> list[Message]:
    names = [f"call_{place}" for place in range(len(cities))]
    calls = [call(name, city) for name, city in zip(names, cities, strict=True)]
    results = [
        {"role": "tool", "tool_call_id": name, "content": f"sky of {city}"}
        for name, city in zip(names, cities, strict=True)
    ]
    asked: Message = {"role": "user", "content": "How is the sky?"}
    return [asked, {"role": "assistant", "content": "", "tool_calls": calls}, *results]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cities", [("Oslo",), ("Oslo", 'Nice "N"')])
def test_everything_is_shown(kind: str, cities: tuple[str, ...]) -> None:
    template = KINDS[kind]
    text = render_prompt(template, for_template(template, history(*cities), [TOOL], {}), {}, [TOOL])
    for city in cities:
        assert json.dumps(city) in text
        assert f"sky of {city}" in text
    assert text.count("<assistant>") == (len(cities) if kind == "one call" else 1)
    assert "\\\\" not in text  # no JSON in JSON
    assert "{'" not in text  # no Python


def test_ids_are_hashed_alike_for_calls_and_results() -> None:
    template = KINDS["short ids"]
    text = render_prompt(template, for_template(template, history("Oslo"), [TOOL], {}), {})
    assert text.count(short_id("call_0")) == 2
    assert short_id("abcDEF123") == "abcDEF123"
    assert len({short_id(f"call_{number}") for number in range(1000)}) == 1000


def test_a_conversation_without_calls_stays_as_it_is() -> None:
    said: list[Message] = [{"role": "user", "content": "Hi"}]
    assert for_template(KINDS["no calls"], said, [], {}) == said


def test_tools_stand_in_the_system_message_where_the_template_looks_for_them_there() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}{{ m['tools'] }}{{ message['tools'] }}{% endfor %}"
    )
    for said in ([{"role": "user", "content": "Hi"}], [{"role": "system", "content": "S"}]):
        first = for_template(template, said, [TOOL], {})[0]
        assert json.loads(first["tools"])[0]["name"] == "sky"
