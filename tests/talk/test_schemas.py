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


def random_answer(grammars: Grammars, grammar: str, seed: int) -> str:
    """What a model with random logits says, that is surer of what ends things."""
    random = np.random.default_rng(seed)
    request = GenerationRequest(
        tokens=[0], sampling=Sampling(temperature=1.0, seed=seed), max_tokens=LONGEST
    )
    sampler = Sampler(request, grammars.constraint(grammar, []))
    said: list[int] = []
    surer = np.zeros(END + 1, dtype=np.float32)
    surer[list(b'"}],0123456789')] = 3
    surer[END] = 6
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
