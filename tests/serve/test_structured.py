"""Structured answers over HTTP: every way to ask for one, and requests that ask for nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.serve.conftest import Running, running
from tests.talk.book import Book, reciting

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}|"
USER: Any = [{"role": "user", "content": "a person"}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
NAMED = {"name": "person", "strict": True, "schema": SCHEMA}
JSON = '{"name": "Ada"}'


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A model that would rather chat."""
    with running(lambda: Book(reciting("Sure, no idea!", JSON, "abc-12", "maybe"), TEMPLATE)) as it:
        yield it


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"response_format": {"type": "text"}}, "Sure, no idea!"),
        ({"response_format": None}, "Sure, no idea!"),
        ({"response_format": {"type": "json_object"}}, JSON),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, JSON),
        ({"json_schema": SCHEMA}, JSON),
        ({"grammar": 'root ::= [a-z]+ "-" [0-9]+'}, "abc-12"),
        ({"guided_json": json.dumps(SCHEMA)}, JSON),
        ({"guided_regex": "[a-z]{3}-[0-9]+"}, "abc-12"),
        ({"guided_choice": ["perhaps", "maybe"]}, "maybe"),
        ({"structured_outputs": {"json": SCHEMA}}, JSON),
        ({"structured_outputs": {"regex": "[a-z]{3}-[0-9]+"}}, "abc-12"),
        ({"structured_outputs": {"json_object": True}}, JSON),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_what_was_asked_for(
    server: Running, asked: dict[str, Any], answer: str, stream: bool
) -> None:
    create = server.client.chat.completions.create
    reply: Any = create(model="model", messages=USER, stream=stream, extra_body=asked)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
    else:
        text = reply.choices[0].message.content
        assert reply.choices[0].finish_reason == "stop"
    assert text == answer


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
        ({"response_format": {"type": "xml"}}, "'xml' is unknown"),
        ({"json_schema": {"unevaluatedProperties": False}}, "unevaluatedProperties"),
        ({"guided_json": "{"}, "JSON schema is not JSON"),
        ({"guided_json": "[]"}, "JSON schema cannot be followed"),
        ({"guided_regex": "(a"}, "regular expression cannot be followed"),
        ({"guided_choice": []}, "nothing to choose"),
        ({"grammar": "?"}, "grammar cannot be followed"),
        ({"grammar": 'root ::= "a"', "guided_regex": "a"}, "one format only"),
    ],
)
def test_nonsense_is_refused_before_it_joins_the_batch(
    server: Running, asked: dict[str, Any], why: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        server.client.chat.completions.create(model="model", messages=USER, extra_body=asked)
    assert server.settles()


def test_plain_completions_follow_a_grammar_too(server: Running) -> None:
    done = server.client.completions.create(
        model="model", prompt="x|", extra_body={"guided_regex": "[a-z]{3}-[0-9]+"}
    )
    assert done.choices[0].text == "abc-12"


def test_the_sdk_parses_a_pydantic_model(demo: Running) -> None:
    class Sum(pydantic.BaseModel):
        a: int
        b: int
        kind: str = pydantic.Field(max_length=20)

    reply = demo.client.chat.completions.parse(
        model="demo", messages=[{"role": "user", "content": "1 + 2"}], response_format=Sum
    )
    assert isinstance(reply.choices[0].message.parsed, Sum)
