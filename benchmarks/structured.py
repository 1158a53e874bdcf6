"""What structured answers cost, and whether all of them are valid.

    python benchmarks/structured.py overhead FILE.gguf
    python benchmarks/structured.py valid FILE.gguf

`overhead`: milliseconds of CPU time and of wall time for a token, with a JSON schema and without,
for one answer and for eight in a batch; the least of the rounds, which take turns. `valid`: answers
by the schemas of tests/talk/data that can be followed, eight at a time at temperature 1, judged by
the package jsonschema; one that was cut off at its 1,024th token counts as cut off, not as valid.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema

from bitquilt.engines import Engine, GenerationRequest, Sampling, open_engine
from bitquilt.errors import UserError
from bitquilt.talk.events import End
from bitquilt.talk.grammar import json_grammar
from bitquilt.talk.prompt import compose
from bitquilt.talk.sample import AnswerSettings, Sample
from bitquilt.talk.session import continued

ROUNDS, LENGTH, BATCH, LONGEST = 9, 96, 8, 1024
SCHEMAS = Path(__file__).parent.parent / "tests" / "talk" / "data" / "schemas.json"


def multiple_of(_: Any, base: float, number: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """Judge multiples exactly: jsonschema divides floats, which some numbers are too large for."""
    if isinstance(number, int | float) and Fraction(str(number)) % Fraction(str(base)):
        yield jsonschema.ValidationError(f"{number} is no multiple of {base}")


VALIDATORS = {
    name: jsonschema.validators.extend(validator, {"multipleOf": multiple_of})
    for name, validator in {
        "draft2020-12": jsonschema.Draft202012Validator,
        "draft7": jsonschema.Draft7Validator,
    }.items()
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "diary": {"type": "array", "items": {"type": "string", "minLength": 60}, "minItems": 40},
    },
    "required": ["name", "age", "diary"],
    "additionalProperties": False,
}
QUESTION = "Invent a person who keeps a diary, and answer in JSON."


def main() -> None:
    """Print the figures of one of the two."""
    what, path = sys.argv[1:]
    with open_engine(path) as engine:
        {"overhead": overhead, "valid": valid}[what](engine)


# ---------------------------------------------------------------------------- overhead


def overhead(engine: Engine) -> None:
    """Print what a token takes, free and by a schema."""
    prompt = compose(engine, [{"role": "user", "content": QUESTION}]).tokens
    grammar = json_grammar(PERSON)
    for rows in (1, BATCH):
        rounds = [
            [_token(engine, prompt, one, rows) for one in (None, grammar)]
            for _ in range(ROUNDS + 1)
        ][1:]
        for unit, name in enumerate(("CPU", "wall")):
            free, bound = (min(one[way][unit] for one in rounds) for way in range(2))
            ratio = statistics.median(one[1][unit] / one[0][unit] for one in rounds)
            print(
                f"{rows} at a time: {free:6.2f} ms {name} a token free, {bound:6.2f} by a schema, "
                f"{bound / free - 1:+.1%}; the median round {ratio - 1:+.1%}"
            )


def _token(
    engine: Engine, prompt: list[int], grammar: str | None, rows: int
) -> tuple[float, float]:
    """Milliseconds of CPU and of wall time for a token."""
    sampling = Sampling(temperature=1.0, top_p=0.95)
    requests = [
        GenerationRequest(
            tokens=prompt,
            sampling=replace(sampling, seed=row),
            max_tokens=LENGTH,
            grammar=grammar,
        )
        for row in range(rows)
    ]
    tokens, started, spent = 0, time.perf_counter(), _cpu(engine)
    with engine.stream(requests) as stream:
        for _ in stream:
            tokens += 1
    wall = time.perf_counter() - started
    return 1000 * (_cpu(engine) - spent) / tokens, 1000 * wall / tokens


def _cpu(engine: Any) -> float:
    """Seconds of CPU time that the engine's process has taken; Linux only."""
    fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# ---------------------------------------------------------------------------- validity


def valid(engine: Engine) -> None:
    """Print how many answers are valid."""
    known = [
        (one, grammar)
        for one in json.loads(SCHEMAS.read_text("utf-8"))
        if (grammar := _followed(one))
    ]
    counts: Counter[str] = Counter()
    for start in range(0, len(known), BATCH):
        some = known[start : start + BATCH]
        for (one, _), text in zip(
            some, _answers(engine, [grammar for _, grammar in some]), strict=True
        ):
            counts[_judged(one, text)] += 1
    print(f"{len(known)} schemas: {dict(counts)}")


def _followed(one: dict[str, Any]) -> str | None:
    try:
        return json_grammar(one["schema"])
    except UserError:
        return None


def _answers(engine: Engine, grammars: list[str]) -> list[str | None]:
    """Answers, of which those that were cut off are None."""
    question = [{"role": "user", "content": "Give an example of such JSON."}]
    prompt = compose(engine, question)
    settings = AnswerSettings(Sampling(temperature=1.0), max_tokens=LONGEST)
    samples = [Sample(engine, prompt, replace(settings, grammar=one)) for one in grammars]
    ends = {row: event for row, event in continued(engine, samples) if isinstance(event, End)}
    done = [ends[row] for row in range(len(samples))]
    return [end.answer if end.finish_reason == "stop" else None for end in done]


def _judged(one: dict[str, Any], text: str | None) -> str:
    if text is None:
        print(one["name"], "is cut off")
        return "cut off"
    faults = list(VALIDATORS[one["draft"]](one["schema"]).iter_errors(json.loads(text)))
    if faults:
        print(one["name"], text, faults[0].message)
    return "invalid" if faults else "valid"


if __name__ == "__main__":
    main()
