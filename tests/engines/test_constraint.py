"""Answers that follow a grammar, in every engine: alone, in a batch, and where it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from bitquilt.engines import Engine, GeneratedToken, GenerationRequest, Sampling
from bitquilt.engines.constraint import Grammars
from bitquilt.talk.grammar import json_grammar, regex_grammar
from tests.engines.conftest import ENGINES, open_in
from tests.factories import tiny_checkpoint

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
PROMPT = [1, 2, 3]


@pytest.fixture(scope="module", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("constraint")
    with open_in(request.param, tiny_checkpoint(directory, "qwen3", layers=1), directory) as opened:
        yield opened


def asked(grammar: str | None, seed: int = 0, **more: object) -> GenerationRequest:
    sampling = Sampling(temperature=1.5, seed=seed)
    fields = {"tokens": PROMPT, "sampling": sampling, "max_tokens": 300, "grammar": grammar, **more}
    return GenerationRequest(**fields)


def said(engine: Engine, *requests: GenerationRequest) -> list[list[GeneratedToken]]:
    rows: list[list[GeneratedToken]] = [[] for _ in requests]
    with engine.stream(requests) as stream:
        for row, piece in stream:
            rows[row].append(piece)
    return rows


def text(pieces: list[GeneratedToken]) -> str:
    return "".join(piece.text for piece in pieces)


def test_rows_of_one_batch_follow_their_own_grammars(engine: Engine) -> None:
    person, code = json_grammar(PERSON), regex_grammar("[a-c]{4}-[0-9]{2}")
    rows = said(engine, asked(person, 1), asked(None, 2), asked(code, 3), asked(person, 4))
    for row in (rows[0], rows[3]):
        found = json.loads(text(row))
        assert set(found) == {"name", "age"}
        assert 0 <= found["age"] <= 120
        assert row[-1].ends
    assert text(rows[0]) != text(rows[3])
    letters, _, digits = text(rows[2]).partition("-")
    assert set(letters) <= set("abc")
    assert len(letters) == 4
    assert len(digits) == 2
    assert digits.isdigit()
    alone = said(engine, asked(None, 2, max_tokens=30))[0]
    assert [piece.token for piece in alone] == [piece.token for piece in rows[1][:30]]


def test_a_row_goes_on_where_it_was(engine: Engine) -> None:
    grammar = json_grammar(PERSON)
    whole = [piece.token for piece in said(engine, asked(grammar))[0]]
    begun = {"tokens": [*PROMPT, *whole[:4]], "said": 4}
    rest = said(engine, asked(grammar, 7, **begun))[0]
    start = "".join(piece.text for piece in said(engine, asked(grammar, max_tokens=4))[0])
    json.loads(start + text(rest))


def test_what_does_not_follow_ends_its_row_alone(engine: Engine) -> None:
    grammar = regex_grammar("[0-9]{3}")
    letters = engine.tokenize("zz")
    wrong = asked(grammar, tokens=[*PROMPT, *letters], said=len(letters))
    rows = said(engine, wrong, asked(grammar, 5), asked("no grammar"))
    assert [piece.problem is None for piece in rows[0]] == [False]
    assert [piece.problem is None for piece in rows[2]] == [False]
    assert text(rows[1]).isdigit()


def test_forced_text_is_spelled_where_the_tokenizer_adds_a_space() -> None:
    pieces = [bytes([byte]) for byte in range(256)] + [b"<end>", b" {", b"ab"]
    grammars = Grammars.of(pieces, [256], [256], lambda text: [257])
    constraint = grammars.constraint(regex_grammar("abab"), [])
    tokens = []
    for _ in range(2):
        allowed, _ = constraint.narrow(np.zeros(259, dtype=np.float32))
        assert allowed is not None
        (token,) = allowed
        constraint.take(int(token))
        tokens.append(int(token))
    assert tokens == [258, 258]


def test_text_is_told_to_the_letter(engine: Engine) -> None:
    """Some tokenizers leave out spaces before punctuation when they turn tokens to text."""
    (row,) = said(engine, asked(regex_grammar(r"a , b \. c ! d \? it 's")))
    assert text(row) == "a , b . c ! d ? it 's"
