"""What a client reads of a field that is not understood: one plain sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bitquilt.serve.errors import RefusedError
from bitquilt.serve.requests import ChatRequest, parse_request


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": []}, "messages has 0 items, but must have at least 1"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [5]}, "messages.0 must be an object"),
        ({"messages": [{"content": "x"}]}, "messages.0.role is missing"),
        ({"max_tokens": -5}, "max_tokens must be -1 or more"),
        ({"max_tokens": 1e99}, "max_tokens is too large a number"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 7}, "top_p must be 1.0 or less"),
        ({"stream": "maybe"}, "stream must be true or false"),
        ({"logit_bias": [1]}, "logit_bias must be an object"),
    ],
)
def test_a_field_that_is_not_understood(fields: dict[str, Any], sentence: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    with pytest.raises(RefusedError) as caught:
        parse_request(ChatRequest, json.dumps(body).encode())
    assert caught.value.sentence == sentence


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"hello", "the body is not JSON: expected value at line 1 column 1"),
        (b"[]", "the body must be an object"),
        (b"{}", "messages is missing"),
    ],
)
def test_a_body_that_is_not_understood(body: bytes, sentence: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_request(ChatRequest, body)
    assert caught.value.sentence == sentence
