"""Prompts continued together and continued again, the same in every engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from bitquilt.engines import Engine, GenerationRequest, Sampling
from tests.engines.conftest import ENGINES, open_in
from tests.factories import tiny_checkpoint

PROMPTS = ([5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 40, 41, 42, 43, 44, 45])
LENGTH = 12


@pytest.fixture(scope="module", params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """One model in each of the engines."""
    directory = tmp_path_factory.mktemp("model")
    with open_in(request.param, tiny_checkpoint(directory, layers=1), directory) as engine:
        yield engine


def say(
    engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling | None = None
) -> tuple[list[list[int]], int]:
    """The tokens of each row, and how many prompt tokens were computed."""
    said: list[list[int]] = [[] for _ in prompts]
    with engine.stream(
        [
            GenerationRequest(tokens=p, sampling=sampling or Sampling(), max_tokens=LENGTH)
            for p in prompts
        ]
    ) as stream:
        for row, piece in stream:
            said[row].append(piece.token)
    return said, stream.prefilled


def test_rows_say_what_they_say_alone(engine: Engine) -> None:
    alone = [say(engine, [prompt])[0][0] for prompt in PROMPTS]
    together, _ = say(engine, PROMPTS)
    assert together == alone
    assert len({tuple(row) for row in alone}) == 3
    assert say(engine, PROMPTS[1:])[0] == alone[1:]


def test_only_new_tokens_are_computed(engine: Engine) -> None:
    prompt = [77, *PROMPTS[2]]
    (first,), prefilled = say(engine, [prompt])
    assert prefilled == len(prompt)
    longer = [*prompt, *first[:-1], 7, 8, 9]
    fresh, _ = say(engine, [longer])
    # going back: what follows the common tokens is computed anew, and to the same end
    assert say(engine, [prompt]) == ([first], 1)
    assert say(engine, [longer])[0] == fresh
    assert say(engine, [[*longer[:11], 1, 2]])[1] == 2


def test_a_shared_prompt_is_computed_once(engine: Engine) -> None:
    prompt = list(range(10, 50))
    rows, prefilled = say(engine, [prompt] * 4, Sampling(temperature=1.0))
    assert prefilled == len(prompt) + 3
    assert rows[0] == rows[1] == rows[2] == rows[3]


def test_seeded_draws_repeat(engine: Engine) -> None:
    drawn = [
        say(engine, [PROMPTS[0]], Sampling(temperature=1.0, top_p=0.95, seed=seed))[0]
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_can_be_dropped_and_streams_left(engine: Engine) -> None:
    together, _ = say(engine, PROMPTS)
    said: list[list[int]] = [[], [], []]
    with engine.stream(
        [GenerationRequest(tokens=p, sampling=Sampling(), max_tokens=LENGTH) for p in PROMPTS]
    ) as stream:
        for row, piece in stream:
            said[row].append(piece.token)
            stream.drop(1)
            if len(said[2]) == 6:
                break
    assert said[2] == together[2][:6]
    # what was left behind does not reach the next one
    assert say(engine, PROMPTS)[0] == together


def test_a_stream_that_was_interrupted_goes_on(engine: Engine) -> None:
    together, _ = say(engine, PROMPTS)
    said: list[list[int]] = [[], [], []]
    with engine.stream(
        [GenerationRequest(tokens=p, sampling=Sampling(), max_tokens=LENGTH) for p in PROMPTS]
    ) as stream:
        stream.interrupt()
        for _ in range(2):
            for row, piece in stream:
                said[row].append(piece.token)
    assert said == together


def test_long_prompts_are_read_in_chunks(engine: Engine) -> None:
    prompt = [i % 500 for i in range(700)]
    (first,), prefilled = say(engine, [prompt])
    assert prefilled == 700
    assert say(engine, [prompt[:600]])[1] == 1
    assert say(engine, [prompt]) == ([first], 100)


def test_rows_may_join(engine: Engine) -> None:
    alone = [say(engine, [prompt])[0][0] for prompt in PROMPTS]
    said: dict[int, list[int]] = {0: [], 1: [], 2: []}
    requests = [
        GenerationRequest(tokens=prompt, sampling=Sampling(), max_tokens=LENGTH)
        for prompt in PROMPTS
    ]
    with engine.stream(requests[:1]) as stream:
        for row, piece in stream:
            said[row].append(piece.token)
            if row == 0 and len(said[0]) == 4:
                assert stream.add(requests[1]) == 1
        assert said == {0: alone[0], 1: alone[1], 2: []}
        assert stream.add(requests[2]) == 2  # after the others have ended
        for row, piece in stream:
            said[row].append(piece.token)
    assert list(said.values()) == alone


def test_text_can_be_tokenized_meanwhile(engine: Engine) -> None:
    tokens = engine.tokenize("some text")
    alone, _ = say(engine, PROMPTS[:1])
    said = []
    with engine.stream(
        [GenerationRequest(tokens=PROMPTS[0], sampling=Sampling(), max_tokens=LENGTH)]
    ) as stream:
        for _, piece in stream:
            said.append(piece.token)
            assert engine.tokenize("some text") == tokens
    assert [said] == alone
