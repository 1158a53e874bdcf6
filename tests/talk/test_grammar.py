"""Grammars of answers: what may be asked for, beside reasoning and with the loop guard."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from bitquilt.engines import Sampling
from bitquilt.errors import UserError
from bitquilt.talk.events import End, Rollback
from bitquilt.talk.grammar import (
    choice_grammar,
    json_grammar,
    regex_grammar,
    text_grammar,
    without_idle,
    without_nulls,
)
from bitquilt.talk.prompt import compose
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import answer
from tests.talk.book import Book, Model, reciting

MAGISTRAL = "{% for m in messages %}{{ m.content }}{% endfor %}{# [THINK] [/THINK] #}|"
SPELLED = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think> </think> #}|"
BOXED = "{% for m in messages %}{{ m.content }}{% endfor %} \\boxed|"
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}|"
OBJECT = json_grammar({"type": "object", "properties": {"a": {"type": "integer"}}})


def ended(model: Model, template: str, grammar: str | None, **settings: object) -> tuple[End, list]:
    book = Book(model, template)
    fields = {"max_tokens": 400, **settings}
    prompt = compose(book, [{"role": "user", "content": "hi"}])
    events = list(answer(book, prompt, AnswerSettings(Sampling(), grammar=grammar, **fields)))
    assert isinstance(events[-1], End)
    return events[-1], events


def test_the_answer_is_the_likeliest_that_follows() -> None:
    end, _ = ended(reciting("Sure: 7", '{"a": 12}'), PLAIN, OBJECT)
    assert end.answer == '{"a": 12}'
    assert end.finish_reason == "stop"


@pytest.mark.parametrize(
    ("template", "opened", "closed"),
    [(MAGISTRAL, "[THINK]", "[/THINK]"), (SPELLED, "<think>", "</think>")],
)
def test_reasoning_is_free_and_the_answer_follows(template: str, opened: str, closed: str) -> None:
    end, _ = ended(reciting(f'{opened}I {{ muse.{closed}\n{{"a": 1}}'), template, OBJECT)
    assert end.reasoning == "I { muse."
    assert end.answer == '{"a": 1}'


@pytest.mark.parametrize("template", [MAGISTRAL, SPELLED])
def test_reasoning_may_be_left_out_or_begun_by_the_prompt(template: str) -> None:
    assert ended(reciting('{"a": 1}'), template, OBJECT)[0].answer == '{"a": 1}'
    tag = "[THINK]" if template == MAGISTRAL else "<think>"
    begun = template.replace("|", "{% if add_generation_prompt %}" + tag + "|{% endif %}")
    close = tag.replace("THINK", "/THINK").replace("think", "/think")
    end, _ = ended(reciting(f'So.{close}{{"a": 1}}'), begun, OBJECT)
    assert (end.reasoning, end.answer) == ("So.", '{"a": 1}')


@pytest.mark.parametrize("template", [MAGISTRAL, SPELLED])
def test_reasoning_that_is_closed_for_the_model_is_followed_by_the_answer(template: str) -> None:
    tag = "[THINK]" if template == MAGISTRAL else "<think>"

    def musing(so_far: str) -> dict[str, float]:
        said = so_far.rpartition("|")[2]
        if len(said) < len(tag):
            return {tag[len(said) :] if tag == "[THINK]" else tag[len(said)]: 1.0}
        return {"abcdefghij"[len(said) % 10]: 1.0, "{": 0.5, '"': 0.5, "}": 0.9}

    end, _ = ended(musing, template, OBJECT, think_budget=30, max_rollbacks=None, max_tokens=900)
    assert end.closed == "budget"
    assert json.loads(end.answer) is not None


def test_a_model_that_reasons_up_to_a_box_answers_at_once() -> None:
    end, _ = ended(reciting('{"a": 5}'), BOXED, OBJECT)
    assert (end.reasoning, end.answer) == ("", '{"a": 5}')


def test_a_loop_is_taken_back_and_the_answer_still_follows() -> None:
    def looping(so_far: str) -> dict[str, float]:
        said = so_far.rpartition("|")[2]
        return {"[": 3.0, "1": 2.0, ",": 2.5, "]": 0.1} if said != "[" else {"1": 1.0}

    grammar = json_grammar({"type": "array", "items": {"const": 1}})
    end, events = ended(looping, PLAIN, grammar, max_tokens=600)
    assert any(isinstance(event, Rollback) for event in events)
    assert set(json.loads(end.answer)) == {1}


@pytest.mark.parametrize(
    ("make", "stated", "why"),
    [
        (json_grammar, {"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        (json_grammar, {"type": "nothing"}, "nothing"),
        (json_grammar, {"$ref": "https://example.com/schema"}, "example.com"),
        (regex_grammar, "(a", "unclosed group"),
        (choice_grammar, [], "nothing to choose"),
        (text_grammar, "root := x", "line 1"),
        (text_grammar, "start: missing", "missing"),
    ],
)
def test_what_cannot_be_followed_is_refused(make: Callable, stated: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        make(stated)


@pytest.mark.parametrize(
    ("grammar", "wanted"),
    [
        (regex_grammar("[a-c]+[0-9]"), "abc7"),
        (choice_grammar(["yes", 'n"o']), 'n"o'),
        (text_grammar('root ::= "a" [0-9]+'), "a77"),
        (text_grammar('start: "a" /[0-9]+/'), "a77"),
    ],
)
def test_regular_expressions_choices_and_both_kinds_of_grammars(grammar: str, wanted: str) -> None:
    assert ended(reciting("zzz", wanted), PLAIN, grammar)[0].answer == wanted


def test_names_of_properties_are_not_keywords():
    named = {"type": "object", "properties": {"propertyNames": {"type": "string"}}}
    assert without_idle(named) == named
    nullable = {"properties": {"default": {"type": "string", "format": None}}}
    assert without_nulls(nullable) == {"properties": {"default": {"type": "string"}}}
    assert without_idle({"propertyNames": {"type": "string"}}) == {}
