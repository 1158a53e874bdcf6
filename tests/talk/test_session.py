"""Conversations with a real model: the demo, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bitquilt.engines import Engine, Sampling, open_engine
from bitquilt.errors import UserError
from bitquilt.talk.events import Answer, End
from bitquilt.talk.prompt import compose
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import Session, answer
from bitquilt.talk.votes import vote

GREEDY = AnswerSettings(sampling=Sampling(), max_tokens=400)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with open_engine("demo") as engine:
        yield engine


def ask(session: Session, text: str) -> End:
    *_, end = session.ask(text)
    assert isinstance(end, End)
    return end


def test_a_conversation_reads_only_what_is_new(engine: Engine) -> None:
    session = Session(engine, GREEDY)
    first = ask(session, "What is 12 + 30?")
    assert first.final == "42"
    second = ask(session, "What is 5 + 9?")
    assert second.final == "14"
    new = second.prompt_tokens - first.prompt_tokens - first.tokens
    # and the last token, whose logits were not asked for, with the end of the turn
    assert second.prefilled_tokens <= new + 1
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1]["content"] == first.reasoning + first.answer


def test_an_answer_is_the_same_whatever_was_read_before(engine: Engine) -> None:
    fresh = ask(Session(engine, GREEDY), "What is 347 + 585?")
    ask(Session(engine, GREEDY), "What is 347 - 58?")
    assert ask(Session(engine, GREEDY), "What is 347 + 585?").answer == fresh.answer
    assert fresh.final == "932"


def test_retracting(engine: Engine) -> None:
    session = Session(engine, GREEDY)
    assert session.retract() is None
    ask(session, "What is 1 + 1?")
    assert session.retract() == "What is 1 + 1?"
    assert session.messages == []


def test_what_is_stopped_is_not_kept(engine: Engine) -> None:
    session = Session(engine, GREEDY)
    events = session.ask("What is 12 + 30?")
    next(events)
    events.close()
    assert session.messages == []
    assert ask(session, "What is 12 + 30?").final == "42"


def test_a_budget_gets_an_answer(engine: Engine) -> None:
    prompt = compose(engine, [{"role": "user", "content": "What is 3701 minus 685?"}])
    for budget in (0, 10, 40):
        *events, end = answer(
            engine, prompt, AnswerSettings(sampling=Sampling(), max_tokens=400, think_budget=budget)
        )
        assert isinstance(end, End)
        assert end.closed == "budget"
        assert end.final
        assert "".join(event.text for event in events if isinstance(event, Answer)) == end.answer


def test_votes(engine: Engine) -> None:
    prompt = compose(engine, [{"role": "user", "content": "What is 347 + 585?"}])
    votes = vote(
        engine,
        prompt,
        AnswerSettings(sampling=Sampling(temperature=0.6, top_p=0.95), max_tokens=300),
        5,
    )
    assert votes.final == "932"
    assert votes.share >= 0.6


def test_a_conversation_too_long_is_one_sentence(engine: Engine) -> None:
    with pytest.raises(UserError, match="the model can read only 2,048"):
        ask(Session(engine, GREEDY), "one two three " * 1000)
