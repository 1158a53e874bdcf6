"""Every answer ends, and with a thinking budget there is one; models here do as they are told."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from bitquilt.engines import Sampling
from bitquilt.errors import UserError
from bitquilt.talk.events import Answer, Closing, End, Event, Reasoning, Rollback
from bitquilt.talk.grammar import json_grammar
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.reasoning import MAGISTRAL, PLAIN, THINK, UP_TO_BOX, ReasoningStyle
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import answer
from tests.talk.book import END_TEXT, Book, Model, reciting

CYCLE = "so we go round and round in one and the same circle; "
LETTERS = "".join(random.Random(0).choices("abcdefgh", k=3000))
DEFAULT = AnswerSettings(sampling=Sampling(), max_tokens=3000)


def ask(
    model: Model, style: ReasoningStyle, settings: AnswerSettings = DEFAULT, **book: int
) -> tuple[list[Event], End, Book]:
    """All events of one answer, its end, and the engine that gave it."""
    engine = Book(model, **book)
    prompt = Prompt(engine.tokenize("Why?|"), style, thinking=style.boxed)
    *events, end = answer(engine, prompt, settings)
    assert isinstance(end, End)
    return events, end, engine


def told(events: list[Event], kind: type[Reasoning] | type[Answer]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def test_a_plain_answer() -> None:
    events, end, _ = ask(reciting("Because."), PLAIN)
    assert told(events, Answer) == "Because."
    assert (end.answer, end.finish_reason, end.tokens, end.final) == ("Because.", "stop", 8, None)


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (THINK, "<think>\nHm.\n</think>\n\n\\boxed{42}"),
        (MAGISTRAL, "[THINK]Hm.\n[/THINK]\\boxed{42}"),
        (UP_TO_BOX, "Hm.\n\\boxed{42}"),
    ],
)
def test_reasoning_is_told_apart(style: ReasoningStyle, text: str) -> None:
    events, end, _ = ask(reciting(text), style)
    assert (told(events, Reasoning).strip(), told(events, Answer)) == ("Hm.", "\\boxed{42}")
    assert (end.reasoning.strip(), end.answer, end.final) == ("Hm.", "\\boxed{42}", "42")
    assert 0 < end.thinking_tokens < end.tokens


def test_other_control_tokens_are_not_shown() -> None:
    _, end, _ = ask(reciting("a[OTHER]b"), MAGISTRAL)
    assert end.answer == "ab"


def test_no_box_then_all_is_the_answer() -> None:
    _, end, _ = ask(reciting("Hello."), UP_TO_BOX)
    assert (end.reasoning, end.answer) == ("", "Hello.")


def test_limits() -> None:
    _, end, _ = ask(reciting("Because."), PLAIN, replace(DEFAULT, max_tokens=3))
    assert (end.answer, end.finish_reason) == ("Bec", "length")
    _, end, _ = ask(reciting("Because."), PLAIN, context=9)
    assert (end.answer, end.finish_reason) == ("Beca", "length")
    with pytest.raises(UserError, match="5 tokens long, but the model can read only 5"):
        ask(reciting("Because."), PLAIN, context=5)


def test_stop_strings() -> None:
    events, end, _ = ask(reciting("one, two, three"), PLAIN, replace(DEFAULT, stop=[", th"]))
    assert told(events, Answer) == end.answer == "one, two"
    assert end.finish_reason == "stop"


# ------------------------------------------------------------------------------- loops


def going_round(way_out: str, sureness: float) -> Model:
    """A model that repeats CYCLE for ever; at its beginning it may choose the way out instead."""

    def model(so_far: str) -> dict[str, float]:
        said = so_far.rpartition("|")[2]
        if said.startswith(way_out[:1]) or way_out[:1] in said:
            return reciting(way_out)("|" + said[said.index(way_out[:1]) :])
        following = {CYCLE[len(said) % len(CYCLE)]: 10.0}
        return following if len(said) % len(CYCLE) else {**following, way_out[0]: sureness}

    return model


def test_a_loop_is_taken_back_and_another_way_found() -> None:
    events, end, _ = ask(going_round("\\boxed{7}", 9.0), UP_TO_BOX)
    assert (end.final, end.finish_reason, end.closed, end.rollbacks) == ("7", "stop", None, 1)
    assert [event.tokens for event in events if isinstance(event, Rollback)] == [2 * len(CYCLE)]
    assert end.discarded_tokens == 2 * len(CYCLE)
    assert CYCLE not in end.reasoning + end.answer


@pytest.mark.parametrize(
    ("style", "opening", "meant"),
    [(UP_TO_BOX, "", "\n\n"), (THINK, "<think>", "\n</think>"), (MAGISTRAL, "[THINK]", "[/THINK]")],
)
def test_after_some_rollbacks_the_thinking_is_closed(
    style: ReasoningStyle, opening: str, meant: str
) -> None:
    def model(so_far: str) -> dict[str, float]:
        said = so_far.partition("|")[2] if style is UP_TO_BOX else so_far.partition("Why?|")[2]
        if style.closes and style.closes in said:
            return reciting("42}.")("|" + said.partition(style.closes)[2].lstrip())
        if not said.startswith(opening):
            return reciting(opening)("|" + said)
        return {CYCLE[(len(said) - len(opening)) % len(CYCLE)]: 9.0}

    events, end, _ = ask(model, style)
    assert (end.finish_reason, end.closed, end.rollbacks) == ("stop", "loop", 3)
    assert sum(isinstance(event, Closing) for event in events) == 1
    assert "42" in end.answer
    assert end.final == ("42" if style is UP_TO_BOX else None)


def test_a_loop_in_the_answer_ends_it() -> None:
    _, end, _ = ask(lambda text: {CYCLE[(len(text) - 5) % len(CYCLE)]: 9.0}, PLAIN)
    assert (end.finish_reason, end.answer, end.rollbacks) == ("loop", "", 3)


def test_without_guard_it_loops_to_the_limit() -> None:
    _, end, _ = ask(
        lambda text: {CYCLE[(len(text) - 5) % len(CYCLE)]: 9.0},
        PLAIN,
        replace(DEFAULT, max_rollbacks=None, max_tokens=500),
    )
    assert (end.finish_reason, end.tokens) == ("length", 500)


TEXTS = json_grammar({"type": "array", "items": {"type": "string"}, "minItems": 2})


def in_json(so_far: str) -> dict[str, float]:
    """A model that repeats CYCLE in a text of JSON for ever."""
    said = so_far.rpartition("|")[2]
    return {'["'[len(said)] if len(said) < 2 else CYCLE[len(said) % len(CYCLE)]: 9.0}


def test_a_loop_in_json_comes_to_a_valid_end() -> None:
    events, end, _ = ask(in_json, PLAIN, replace(DEFAULT, grammar=TEXTS))
    assert (end.finish_reason, end.rollbacks) == ("stop", 3)
    assert len(json.loads(end.answer)) == 2
    *_, taken_back = (event for event in events if isinstance(event, Rollback))
    assert end.answer.startswith(taken_back.answer)


@pytest.mark.parametrize("most", [20, 100, 2000])
def test_json_is_valid_within_its_tokens(most: int) -> None:
    settings = replace(DEFAULT, grammar=TEXTS, max_tokens=most, max_rollbacks=None)
    _, end, _ = ask(in_json, PLAIN, settings)
    assert end.finish_reason == "stop"
    assert len(json.loads(end.answer)) == 2
    assert most / 2 - 1 <= end.tokens <= most


def test_reasoning_that_does_not_end_leaves_room_for_json() -> None:
    settings = replace(DEFAULT, grammar=TEXTS, max_tokens=100, max_rollbacks=None)
    _, end, _ = ask(lambda text: {LETTERS[len(text)]: 1.0, "[THINK]": 9.0}, MAGISTRAL, settings)
    assert end.thinking_tokens > 40
    assert len(json.loads(end.answer)) == 2


# ------------------------------------------------------------------------------ budget


@pytest.mark.parametrize("budget", [0, 1, 17])
def test_a_spent_budget_closes_the_thinking(budget: int) -> None:
    def model(so_far: str) -> dict[str, float]:
        said = so_far.rpartition("|")[2]
        if "\\boxed{" in said:
            return reciting("42}")("|" + said.partition("\\boxed{")[2])
        return {LETTERS[len(said)]: 1.0}

    events, end, _ = ask(model, UP_TO_BOX, replace(DEFAULT, think_budget=budget))
    assert (end.final, end.closed, end.finish_reason) == ("42", "budget", "stop")
    closing = len("\n\n\\boxed{")
    assert budget <= end.thinking_tokens <= budget + closing
    assert end.tokens == budget + closing + len("42}")
    assert told(events, Reasoning) == LETTERS[:budget] + "\n\n"


def test_a_budget_leaves_room_for_the_answer() -> None:
    settings = replace(DEFAULT, think_budget=10_000, max_tokens=400)
    _, end, _ = ask(lambda text: {LETTERS[len(text)]: 1.0}, UP_TO_BOX, settings)
    assert end.closed == "budget"
    assert end.final
    assert end.tokens <= 400


def test_a_box_that_is_not_closed_is_closed() -> None:
    for ending in (END_TEXT, "7"):
        settings = replace(DEFAULT, think_budget=0, max_rollbacks=None)
        _, end, _ = ask(lambda text, said=ending: {said: 1.0}, UP_TO_BOX, settings)
        assert end.finish_reason == "stop"
        assert end.final is not None


@pytest.mark.parametrize("style", [UP_TO_BOX, THINK, PLAIN])
def test_silence_is_no_answer_where_there_is_a_budget(style: ReasoningStyle) -> None:
    def model(so_far: str) -> dict[str, float]:
        return {"6": 1.0} if so_far.endswith("{") else reciting("")(so_far)

    _, end, _ = ask(model, style, replace(DEFAULT, think_budget=50))
    assert (end.closed, end.answer) == ("silence", "\\boxed{6}")
    _, end, _ = ask(model, style)
    assert (end.closed, end.answer, end.finish_reason) == (None, "", "stop")


@pytest.mark.parametrize("said", ["so \\boxed{12", "\\boxed{}", "\\boxed{1}"])
def test_an_empty_or_open_box_is_no_answer_where_there_is_a_budget(said: str) -> None:
    def model(so_far: str) -> dict[str, float]:
        return reciting(said, said + "\\boxed{7}")(so_far)

    _, end, _ = ask(model, UP_TO_BOX, replace(DEFAULT, think_budget=50))
    assert end.final == ("1" if said == "\\boxed{1}" else "7")


def test_a_box_begun_too_late_is_closed() -> None:
    text = LETTERS[:10] + "\\boxed{" + LETTERS
    settings = replace(DEFAULT, think_budget=100, max_tokens=60)
    _, end, _ = ask(reciting(text), UP_TO_BOX, settings)
    assert (end.final, end.finish_reason, end.tokens) == (LETTERS[:43], "length", 60)


# ------------------------------------------------------------------------------- seeds


def test_legs_have_seeds_of_their_own_and_count_their_tokens() -> None:
    settings = replace(DEFAULT, sampling=Sampling(seed=5), think_budget=3)
    _, _, engine = ask(reciting("abcdefgh"), UP_TO_BOX, settings)
    first, second = engine.requests
    assert first.sampling.seed == 5 != second.sampling.seed
    assert (first.said, second.said) == (0, 3 + len("\n\n\\boxed{"))
    assert list(second.tokens[: len(first.tokens)]) == list(first.tokens)
