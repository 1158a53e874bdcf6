"""The shortest way out of grammars that are not one JSON schema: marks, control tokens, texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bitquilt.engines import GenerationRequest, Sampling
from bitquilt.engines.constraint import Grammars
from bitquilt.engines.sampling import Sampler

END, CLOSE = 256, 257
SCHEMA = '%json {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}'


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    pieces = [bytes([byte]) for byte in range(END)] + [b"<end>", b"</think>"]
    return Grammars.of(pieces, [END, CLOSE], [END], lambda text: list(text.encode()))


def led(grammars: Grammars, lark: str, begun: str, most: int = 200) -> str | None:
    """What is said after a beginning; the model would rather say z. None where it does not end."""
    grammar = json.dumps({"grammars": [{"lark_grammar": lark}]})
    request = GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=most, finish=most)
    sampler = Sampler(request, grammars.constraint(grammar, list(begun.encode())))
    logits = np.zeros(END + 2, dtype=np.float32)
    logits[ord("z")], logits[ord("x")] = 2, 1
    said = ""
    for _ in range(most):
        token = sampler.draw(logits)
        if token == END:
            return said
        said += "</think>" if token == CLOSE else chr(token)
    return None


@pytest.mark.parametrize("base", [3, 7, 30, 96, 1000])
def test_a_multiple_is_found(grammars: Grammars, base: int) -> None:
    lark = f'start: %json {{"type": "integer", "multipleOf": {base}}}'
    said = led(grammars, lark, "1", most=256)
    assert said is not None
    assert int("1" + said) % base == 0


@pytest.mark.parametrize(
    ("lark", "begun", "end"),
    [
        ('start: text\ntext[suffix="\\n</p>"]: /(.|\\n)*/', "so", "\n</p>"),
        ('start: one two\none[suffix="<1>"]: /(.|\\n)*/\ntwo[suffix="<2>"]: /(.|\\n)*/', "so",
         "<1><2>"),
        (f"start: TEXT <[{CLOSE}]> value\nTEXT: /(.|\\n)*/\nvalue: {SCHEMA}", "so",
         '</think>{"a":""}'),
        (f'start: "<call>" value "</call>"\nvalue: {SCHEMA}', '<call>{"a": "with \\"', '"}</call>'),
        ('start: /[a-z0-9"]*x/', "so", None),
        ('start: /[xy]{3}-[ab]+!/', "y", "xx-a!"),
    ],
    ids=["mark", "two marks", "control token", "JSON in tags", "no way known", "regex"],
)  # fmt: skip
def test_it_comes_to_its_end(grammars: Grammars, lark: str, begun: str, end: str | None) -> None:
    assert led(grammars, lark, begun) == end
