"""Conversations that a chat template refuses are told it in turns of user and assistant."""

from __future__ import annotations

from typing import Any

import pytest

from bitquilt.errors import UserError
from bitquilt.talk.merging import merged_turns
from bitquilt.talk.prompt import compose
from tests.talk.book import Book, reciting

STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}|{% endif %}"
)
"""As Gemma 2's, and those of Mistral's first models."""


def said(**turns: str) -> list[Any]:
    """Messages of roles by their first letters; a number tells those of one role apart."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[name[0]], "content": text} for name, text in turns.items()]


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (said(u="hi"), "<user>hi|"),
        (said(s="Be brief.", u="hi"), "<user>Be brief.\n\nhi|"),
        (said(s="Be brief."), "<user>Be brief.|"),
        (said(s="", u="hi"), "<user>hi|"),
        (said(u1="a", u2="b"), "<user>a\n\nb|"),
        (said(u1="a", a="b", s="c", u2="d"), "<user>a<assistant>b<user>c\n\nd|"),
        (said(u="a", a="b", s="c"), "<user>a<assistant>b<user>c|"),
    ],
)
def test_a_template_that_refuses_gets_the_same_words_in_turns(
    messages: list[Any], prompt: str
) -> None:
    book = Book(reciting("x"), STRICT)
    assert book.decode(compose(book, messages).tokens) == prompt


def test_what_is_refused_still_is_refused_in_the_first_words() -> None:
    book = Book(reciting("x"), STRICT)
    with pytest.raises(UserError, match="no system"):
        compose(book, said(s="a", u="b", a1="c", a2="d"))


def test_calls_and_their_results_stay() -> None:
    messages = [*said(u="a"), {"role": "tool", "content": "3", "tool_call_id": "x"}]
    assert merged_turns(messages) == messages
