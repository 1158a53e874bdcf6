"""Answers of a random model are valid by every schema of the test suite that can be followed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from bitquilt.engines import GenerationRequest, Sampling
from bitquilt.engines.constraint import Grammars
from bitquilt.engines.sampling import Sampler
from bitquilt.errors import UserError
from bitquilt.talk.grammar import json_grammar

SUITE = json.loads((Path(__file__).parent / "data" / "schemas.json").read_text("utf-8"))
VALIDATORS = {
    "draft2020-12": jsonschema.Draft202012Validator,
    "draft7": jsonschema.Draft7Validator,
}
END = 256
LEAST = 200
LONGEST = 4000
LOOSE, LED = 20, 60
"""A model is led after so many tokens, and has ended after so many."""


def random_answer(grammars: Grammars, grammar: str, seed: int, surely: float = 3) -> str:
    """What a model with random logits says.

    Args:
        grammars: of the model's tokens.
        grammar: of the answer.
        seed: of the model.
        surely: how much surer it is of what ends things; 0 for a model that is led to the end.
    """
    random = np.random.default_rng(seed)
    request = GenerationRequest(
        tokens=[0],
        sampling=Sampling(temperature=1.0, seed=seed),
        max_tokens=LONGEST,
        finish=0 if surely else LONGEST - LOOSE,
    )
    sampler = Sampler(request, grammars.constraint(grammar, []))
    said: list[int] = []
    surer = np.zeros(END + 1, dtype=np.float32)
    surer[list(b'"}],0123456789')] = surely
    surer[END] = 2 * surely
    while len(said) < LONGEST:
        logits = surer + random.normal(size=END + 1).astype(np.float32)
        token = sampler.draw(logits)
        if token == END:
            return bytes(said).decode()
        said.append(token)
    raise AssertionError("the answer does not end")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    pieces = [bytes([byte]) for byte in range(END)] + [b"<end>"]
    return Grammars.of(pieces, [END], [END], lambda text: list(text.encode()))


def followed(schema: dict[str, Any]) -> str | None:
    try:
        return json_grammar(schema)
    except UserError:
        return None


def test_every_answer_is_valid(grammars: Grammars) -> None:
    known = [(one, grammar) for one in SUITE if (grammar := followed(one["schema"])) is not None]
    assert len(known) >= LEAST
    wrong = []
    for number, (one, grammar) in enumerate(known):
        validator = VALIDATORS[one["draft"]](one["schema"])
        for seed in range(3):
            answer = random_answer(grammars, grammar, 1000 * seed + number)
            faults = [fault.message for fault in validator.iter_errors(json.loads(answer))]
            wrong += [(one, answer, faults)] if faults else []
    assert wrong == []


def test_one_that_never_ends_is_led_to_a_valid_end(grammars: Grammars) -> None:
    """With the model's own choices first, so that any place in the answer may be where it is."""
    known = [(one, grammar) for one in SUITE if (grammar := followed(one["schema"])) is not None]
    wrong = []
    for number, (one, grammar) in enumerate(known):
        answer = random_answer(grammars, grammar, number, surely=0)
        faults = list(VALIDATORS[one["draft"]](one["schema"]).iter_errors(json.loads(answer)))
        wrong += [(one, answer)] if faults or len(answer) > LED else []
    assert wrong == []
