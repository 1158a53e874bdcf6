"""A scripted model that talks, calls a tool, and fills in a form, for tests with real clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.serve.conftest import Running, running
from tests.talk.book import Book, reciting

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is false %}<quiet>{% endif %}|"
    "{% endif %}{# </think> #}"
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
PERSON = '{"name": "Ada", "age": 36}'
THOUGHT, HELLO, SUM = "<think>Hm.</think>\n\n", "Hello.", "It is 3."


def agent(so_far: str) -> dict[str, float]:
    """Say hello, call a tool that is there, tell what it returned, or fill in a form; surely."""
    prompt, _, said = so_far.rpartition("|")
    named = [CALL.replace("add", name) for name in ("Person", "final_result") if name in prompt]
    forms = [form.replace('{"a": 1, "b": 2}', PERSON) for form in named]
    if "<tool>" in prompt:
        texts = [SUM]
    elif "<tool_call>" in prompt:
        texts = forms or [CALL]
    else:
        thought = "" if "<quiet>" in prompt else THOUGHT
        texts = [thought + HELLO, thought + PERSON, PERSON]
    return {text: 100 * sure for text, sure in reciting(*texts)("|" + said).items()}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one of them.
        b: the other.
    """
    return a + b


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


@contextmanager
def serving(**options: Any) -> Iterator[Running]:
    """A server of that model."""
    with running(lambda: Book(agent, TEMPLATE, context=100_000), **options) as server:
        yield server
