"""Tool calls of all families: found however the text is cut, and only where they are calls."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitquilt.engines import ModelInfo, Sampling
from bitquilt.talk.tool_calls import Call, ToolStyle, call_style

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "integer"},
        "deep": {"type": "object", "properties": {"on": {"type": "boolean"}}},
    },
    "required": ["text"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}
    for name in ("write", "read", "python")
]

SIGNS = {
    "Hermes": "<tool_call>",
    "Qwen3-Coder": "<tool_call>\n<function=example>",
    "Llama 3": "<|python_tag|>",
    "Mistral": "[TOOL_CALLS]",
    "Mistral 11": "[TOOL_CALLS] [ARGS]",
    "FunctionGemma": "<start_function_call>",
    "Gemma 4": "<|tool_call>",
    "Granite 3": "respond with <|tool_call|> followed by a JSON list",
    "Phi-4": "<|tool|> tools <|/tool|>",
    "gpt-oss": "<|channel|>",
}

TRICKY = 'a </tool_call> "b" {c} [TOOL_CALLS] \\'
ONE = Call.of("write", {"text": TRICKY, "n": 3})
TWO = Call.of("read", {"deep": {"on": True}, "text": "é\n"})
QUOTED = json.dumps({"name": "write", "arguments": {"text": TRICKY, "n": 3}})
LATER = json.dumps({"name": "read", "arguments": {"deep": {"on": True}, "text": "é\n"}})
ARGS = [json.dumps(json.loads(text)["arguments"]) for text in (QUOTED, LATER)]
PYTHONIC = QUOTED.replace('"arguments"', '"parameters"')
HTML = '<p class="x">5 < 6</p>\n</parameter>\n<b>'

CASES: dict[str, list[tuple[str, list[str | Call]]]] = {
    "Hermes": [
        (f"<tool_call>\n{QUOTED}\n</tool_call>\n<tool_call>{LATER}</tool_call>", [ONE, "\n", TWO]),
        (f"a < b <tool_call>{QUOTED}</tool_call> and", ["a < b ", ONE, " and"]),
        (f"<tool_call>{QUOTED}", [ONE]),
        (f"<tool_call>[{QUOTED}, {LATER}]</tool_call>", [ONE, TWO]),
        ('<tool_call>{"name": "read"}</tool_call>', [Call("read", "{}")]),
        ('<tool_call>{"name": "read", "arguments": ""}</tool_call>', [Call("read", "{}")]),
        *[
            (text, [text])
            for text in (
                "<tool_call>no JSON</tool_call>",
                '<tool_call>{"arguments": {}}</tool_call>',
                '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
                "<tool_call>[1]</tool_call>",
                "<tool_call>cut off",
                "a <tool_",
            )
        ],
    ],
    "Qwen3-Coder": [
        (
            "Well.\n<tool_call>\n<function=write>\n<parameter=text>\n"
            f"{HTML}\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>\n"
            "<tool_call>\n<function=read>\n<parameter=deep>\n"
            '{"on": true}\n</parameter>\n</function>\n</tool_call>',
            [
                "Well.\n",
                Call.of("write", {"text": HTML, "n": 3}),
                "\n",
                Call.of("read", {"deep": {"on": True}}),
            ],
        ),
        (
            "<function=write>\n<parameter=text>\n7\n</parameter>\n</function>",
            [Call.of("write", {"text": "7"})],
        ),
        ("<tool_call>\n<function=read>\n</function>\n</tool_call>", [Call("read", "{}")]),
        ("<tool_call>nothing", ["<tool_call>nothing"]),
    ],
    "Llama 3": [
        (PYTHONIC, [ONE]),
        (f"{PYTHONIC}; {LATER}", [ONE, TWO]),
        (f"<|python_tag|>{PYTHONIC}", [ONE]),
        (
            f'{{"type": "function", "function": {json.dumps("write")}, "parameters": {ARGS[0]}}}',
            [ONE],
        ),
        ('<|python_tag|>write.call(text="x", n=2)', [Call.of("write", {"text": "x", "n": 2})]),
        ("<|python_tag|>print(1)\nprint(2)", [Call.of("python", {"code": "print(1)\nprint(2)"})]),
        *[
            (text, [text])
            for text in (
                '{"answer": 42}',
                '{"name": "Ada", "parameters": {}}',
                f"I say {PYTHONIC}",
                '{"name": "write", ',
                "{",
            )
        ],
    ],
    "Mistral": [
        (f"[TOOL_CALLS] [{QUOTED}, {LATER}]", [ONE, TWO]),
        (f"Sure.[TOOL_CALLS][{QUOTED}]", ["Sure.", ONE]),
        (f"[TOOL_CALLS]{QUOTED}", [ONE]),
        ("[TOOL_CALLS] no call {}", ["[TOOL_CALLS] no call {}"]),
    ],
    "Mistral 11": [
        (
            f"[TOOL_CALLS]write[ARGS]{ARGS[0]}[TOOL_CALLS]read[CALL_ID]abcdefghi[ARGS]{ARGS[1]}",
            [ONE, TWO],
        ),
        (f"[TOOL_CALLS]write{ARGS[0]}", [ONE]),
        (f"[TOOL_CALLS][{QUOTED}]", [ONE]),
    ],
    "FunctionGemma": [
        (
            '<start_function_call>call:write{text:<escape>it\'s {5}, "ok"<escape>,n:-3}'
            "<end_function_call><start_function_call>call:read{deep:{on:true,l:[1,<escape>b<escape>]}}"
            "<end_function_call>",
            [
                Call.of("write", {"text": 'it\'s {5}, "ok"', "n": -3}),
                Call.of("read", {"deep": {"on": True, "l": [1, "b"]}}),
            ],
        ),
        ("<start_function_call>call:read{}<end_function_call>", [Call("read", "{}")]),
        ("<start_function_call>call{", ["<start_function_call>call{"]),
        ("<start_function_call>call:f{a b}", ["<start_function_call>call:f{a b}"]),
    ],
    "Gemma 4": [
        (
            'Hm.<|tool_call>call:write{text:<|"|><tool_call|><|"|>,n:3}<tool_call|>',
            ["Hm.", Call.of("write", {"text": "<tool_call|>", "n": 3})],
        ),
    ],
    "Granite 3": [
        (f"<|tool_call|>[{QUOTED}, {LATER}]", [ONE, TWO]),
        (f"<tool_call>[{QUOTED}]", [ONE]),
        (f"<function_call> {QUOTED}", [ONE]),
    ],
    "Phi-4": [
        (f"<|tool_call|>[{QUOTED}, {LATER}]<|/tool_call|>", [ONE, TWO]),
        (f"functools[{QUOTED}]", [ONE]),
        ("functools is a module", ["functools is a module"]),
    ],
    "gpt-oss": [
        (
            f"<|channel|>commentary to=functions.write <|constrain|>json<|message|>{ARGS[0]}",
            [ONE],
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.write"
            f"<|channel|>commentary json<|message|>{ARGS[0]}<|call|>",
            ["I look.", ONE],
        ),
        (f" to=functions.read<|channel|>commentary json<|message|>{ARGS[1]}", [" ", TWO]),
        ("<|start|>assistant<|channel|>final<|message|>Done.<|return|>", ["Done."]),
        ("to be", ["to be"]),
    ],
}
ALL = [(family, text, parts) for family, cases in CASES.items() for text, parts in cases]


def style_for(template: str | None, **more: Any) -> ToolStyle | None:
    info = ModelInfo(
        vocabulary=9,
        context=9,
        chat_template=template,
        special_tokens={},
        sampling=Sampling(),
        **more,
    )
    return call_style(info)


def read(style: ToolStyle, pieces: list[str]) -> list[str | Call]:
    """What a reader makes of pieces, neighbouring texts as one."""
    reader = style.reader(TOOLS)
    parts: Iterator[str | Call] = itertools.chain(
        *(list(reader.push(piece)) for piece in pieces), reader.rest()
    )
    found: list[str | Call] = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


@pytest.mark.parametrize(("family", "text", "parts"), ALL)
def test_calls_are_found_and_all_else_is_text(
    family: str, text: str, parts: list[str | Call]
) -> None:
    style = style_for(SIGNS[family])
    assert style is not None
    assert read(style, [text]) == parts
    assert read(style, list(text)) == parts


@given(st.sampled_from(ALL), st.lists(st.integers(0, 300)))
def test_it_does_not_matter_how_the_text_is_cut(
    case: tuple[str, str, list[str | Call]], places: list[int]
) -> None:
    family, text, parts = case
    ends = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    style = style_for(SIGNS[family])
    assert style is not None
    assert read(style, [text[a:b] for a, b in itertools.pairwise(ends)]) == parts


@pytest.mark.parametrize("family", SIGNS)
def test_a_call_is_told_when_it_is_complete(family: str) -> None:
    """The first of two calls is there before the second has begun, unless both are in one list."""
    text, parts = next(
        (case for case in CASES[family] if sum(isinstance(part, Call) for part in case[1]) == 2),
        CASES[family][0],
    )
    style = style_for(SIGNS[family])
    assert style is not None
    reader = style.reader(TOOLS)
    told = list(itertools.chain(*(list(reader.push(letter)) for letter in text)))
    late = family == "Qwen3-Coder" and "</tool_call>" not in text
    assert any(isinstance(part, Call) for part in told) != late
    assert parts


@pytest.mark.parametrize("template", [None, "", "{{ messages }}", "{{ tools | tojson }}"])
def test_an_unknown_way_is_unknown(template: str | None) -> None:
    assert style_for(template) is None


CALLS = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>CALL</tool_call>{% endfor %}{% endfor %}"
)


def test_marks_that_mean_something_else_are_unknown() -> None:
    """GLM writes Hermes' tags around names and values that are no JSON."""
    hermes = CALLS.replace("CALL", "{{ c.function | tojson }}")
    glm = CALLS.replace(
        "CALL",
        "{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
        "<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value>{% endfor %}",
    )
    known = style_for(hermes)
    assert known is not None
    assert known.name == "Hermes"
    assert style_for(glm) is None


def test_the_tokenizers_own_template_is_used_where_nothing_else_is_known() -> None:
    spec = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|assistant|>",
        "fields": {
            "tool_calls": {
                "open_pattern": r"<\|do\|>",
                "close": "<|done|>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"content": "text"},
        },
    }
    style = style_for("{{ tools }}", response_template=spec)
    assert style is not None
    assert any("<|do|>" in mark for mark in style.marks)
    text = f"Well. <|do|>{LATER}<|done|>"
    for pieces in ([text], list(text)):
        assert [part for part in read(style, pieces) if part != ""] == ["Well. ", TWO]
    assert style.force is None
    broken = "a <|do|>{no JSON<|done|> b"
    assert read(style, [broken]) == [broken]
    assert style_for("{{ tools }}", response_template={"fields": {"tool_calls": {}}}) is None


def test_a_long_call_takes_no_long_time() -> None:
    arguments = {"text": 'x{y}"z' * 4000}
    text = json.dumps({"name": "write", "arguments": arguments})
    style = style_for(SIGNS["Hermes"])
    assert style is not None
    pieces = [text[place : place + 4] for place in range(0, len(text), 4)]
    assert read(style, ["<tool_call>", *pieces, "</tool_call>"]) == [Call.of("write", arguments)]
