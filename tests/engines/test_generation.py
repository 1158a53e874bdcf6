"""Generation around a backend: whole characters, stops, limits, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bitquilt.engines import spoken
from bitquilt.engines.backend import Logits
from bitquilt.engines.engine import GeneratedToken, GenerationRequest, ModelInfo, Sampling
from bitquilt.engines.generation import Generation
from bitquilt.errors import UserError

END, CONTROL = 256, 257


class Parrot:
    """A model whose tokens are bytes; each row says the sentence that its prompt numbers."""

    info = ModelInfo(
        vocabulary=258, context=1000, chat_template=None, special_tokens={}, sampling=Sampling()
    )

    def __init__(self, *sentences: Sequence[int]) -> None:
        self._sentences = sentences
        self.batches: list[int] = []

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        return bytes(token for token in tokens if token < END).decode(errors="replace")

    def control_text(self, token: int) -> str | None:
        return "[CONTROL]" if token == CONTROL else None

    def ends_turn(self, token: int) -> bool:
        return token == END

    def window(self, tokens: Sequence[int]) -> Logits:
        raise NotImplementedError

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        self._rows = [iter([*self._sentences[prompt[0]], END]) for prompt in prompts]
        return self.step([]), len(prompts)

    def step(self, tokens: Sequence[int]) -> Logits:
        self.batches.append(len(self._rows))
        logits = np.zeros((len(self._rows), 258), dtype=np.float32)
        for row, rest in zip(logits, self._rows, strict=True):
            row[next(rest)] = 1.0
        return logits

    def retain(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]


def say(text: str | Sequence[int], max_tokens: int = 100) -> list[GeneratedToken]:
    sentence = text.encode() if isinstance(text, str) else text
    request = GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=max_tokens)
    return [piece for _, piece in Generation(Parrot(sentence), [request])]


@pytest.mark.parametrize("text", ["", "plain", "é🙂👩‍🚀 你好", "\ufffd odd \ufffd"])
def test_pieces_are_whole_characters(text: str) -> None:
    pieces = say(text)
    assert "".join(piece.text for piece in pieces) == text
    assert all(len(piece.text) <= 1 for piece in pieces if "\ufffd" not in text)
    assert [piece.ends for piece in pieces] == [False] * len(text.encode()) + [True]


def test_no_more_than_asked_for() -> None:
    assert [piece.text for piece in say("abcdef", 3)] == ["a", "b", "c"]
    assert say("abcdef", 0) == []


def test_a_character_that_the_limit_cuts_is_not_swallowed() -> None:
    assert "".join(piece.text for piece in say("a🙂", 3)) == "a\ufffd"


def test_control_tokens_are_told_apart() -> None:
    pieces = say([ord("a"), CONTROL, ord("b")])
    assert [(piece.text, piece.control) for piece in pieces[:3]] == [
        ("a", False),
        ("[CONTROL]", True),
        ("b", False),
    ]


def test_rows_end_each_for_itself() -> None:
    parrot = Parrot(b"abc", b"d", b"efghi")
    requests = [
        GenerationRequest(tokens=[row], sampling=Sampling(), max_tokens=4) for row in range(3)
    ]
    said = ["", "", ""]
    for row, piece in Generation(parrot, requests):
        said[row] += piece.text
    assert said == ["abc", "d", "efgh"]
    assert parrot.batches == [3, 3, 2, 2]


def test_a_dropped_row_is_continued_no_further() -> None:
    parrot = Parrot(b"abcdef")
    generation = Generation(
        parrot, [GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=9)] * 2
    )
    said = ["", ""]
    for row, piece in generation:
        said[row] += piece.text
        if row == 0 and len(said[0]) == 2:
            generation.drop(0)
        if len(said[1]) == 4:
            generation.close()
    assert said == ["ab", "abcd"]
    assert parrot.batches == [2, 2, 1, 1]


class Overflowing(Parrot):
    """The row of sentence 1 computes NaN after two tokens."""

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        self._broken = [prompt[0] == 1 for prompt in prompts]
        self._steps = 0
        return super().prefill(prompts, room)

    def step(self, tokens: Sequence[int]) -> Logits:
        logits = super().step(tokens)
        self._steps += 1
        if self._steps == 3:
            logits[self._broken, 100] = np.nan
        return logits

    def retain(self, rows: Sequence[int]) -> None:
        super().retain(rows)
        self._broken = [self._broken[row] for row in rows]


def test_a_row_without_numbers_ends_broken_and_the_others_go_on() -> None:
    requests = [
        GenerationRequest(tokens=[number], sampling=Sampling(), max_tokens=100)
        for number in (0, 1, 2)
    ]
    said: list[list[GeneratedToken]] = [[], [], []]
    for row, piece in Generation(Overflowing(b"one two", b"three", b"four"), requests):
        said[row].append(piece)
    assert ["".join(piece.text for piece in row) for row in said] == ["one two", "th", "four"]
    assert [row[-1].ends for row in said] == [True, True, True]
    assert [row[-1].broken for row in said] == [False, True, False]
    assert not any(piece.broken for row in said for piece in row[:-1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_who_wants_all_rows_gets_an_error_that_names_the_model(value: float) -> None:
    class Broken(Parrot):
        def step(self, tokens: Sequence[int]) -> Logits:
            return np.full_like(super().step(tokens), value)

    request = GenerationRequest(tokens=[0], sampling=Sampling(temperature=1.0), max_tokens=9)
    info = replace(Parrot.info, name="m.gguf")
    with pytest.raises(UserError, match=r"m\.gguf computes NaN or infinity"):
        list(spoken(info, Generation(Broken(b"one"), [request])))


def test_tokens_that_an_engine_forbids_are_no_error() -> None:
    class Forbidding(Parrot):
        def step(self, tokens: Sequence[int]) -> Logits:
            logits = super().step(tokens)
            logits[:, 7] = -np.inf
            return logits

    request = GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=9)
    assert not any(piece.broken for _, piece in Generation(Forbidding(b"one"), [request]))


def test_what_fails_in_drawing_ends_its_row_alone(capfd: pytest.CaptureFixture[str]) -> None:
    sound = GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=9)
    foreign = replace(sound, logit_bias=[(9999, 1.0)])  # fails when the token is drawn
    unseeded = replace(sound, sampling=Sampling(temperature=1.0, seed=-1))  # and before
    pieces = list(Generation(Parrot(b"one"), [foreign, sound, unseeded]))
    assert "".join(piece.text for row, piece in pieces if row == 1) == "one"
    for row in (0, 2):
        (piece,) = (piece for index, piece in pieces if index == row)
        assert piece.ends
        assert piece.problem
        assert "could not be drawn" in piece.problem
    assert "IndexError" in capfd.readouterr().err


class Small(Parrot):
    """A model that has no room for some prompts, and forgets everything when it is full."""

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        if any(len(prompt) > 3 and prompt[-1] == 9 for prompt in prompts):
            self._rows = []
            raise UserError("it does not fit")
        done = [max(0, len(prompt) - 1) for prompt in prompts]
        self._rows = [
            iter([*self._sentences[p[0]], END][d:]) for p, d in zip(prompts, done, strict=True)
        ]
        return self.step([]), len(prompts)


def test_a_prompt_that_does_not_fit_ends_its_row_alone() -> None:
    sound = GenerationRequest(tokens=[0], sampling=Sampling(), max_tokens=9)
    large = replace(sound, tokens=[0, 0, 0, 9])
    other = replace(sound, tokens=[1])
    generation = Generation(Small(b"first", b"other"), [sound])
    said: dict[int, str] = {}
    problems = []
    for row, piece in generation:
        said[row] = said.get(row, "") + piece.text
        problems += [(row, piece.problem)] if piece.problem else []
        if said == {0: "fi"}:
            generation.add(large)
            generation.add(other)
    assert problems == [(1, "it does not fit")]
    assert (said[0], said[2]) == ("first", "other")
    pieces = list(Generation(Small(b"x"), [large]))
    assert [piece.problem for _, piece in pieces] == ["it does not fit"]
