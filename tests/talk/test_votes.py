"""Votes: batches of samples, and what most of them say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitquilt.engines import Sampling
from bitquilt.talk.events import End
from bitquilt.talk.prompt import Prompt
from bitquilt.talk.reasoning import UP_TO_BOX
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import answer
from bitquilt.talk.votes import normalized, tally, vote
from tests.progress import Recorded
from tests.talk.book import Book
from tests.talk.ends import ended


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,234", "1234"),
        ("$ 12 $", "12"),
        ("0.50", ".5"),
        ("12.0", "12"),
        ("\\text{East}", "east"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("12\\,\\text{km}", "12 km"),
        ("\\left(1, 2\\right)", "(1,2)"),
        ("5.", "5"),
        ("\\$18", "18"),
        ("50\\%", "50%"),
        ("1{,}000", "1000"),
    ],
)
def test_spellings_of_one_answer(one: str, other: str) -> None:
    if other.startswith("."):
        other = "0" + other
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(
    ("one", "other"), [("12", "1.2"), ("1,2", "12"), ("10", "1"), ("0.05", "0.5"), ("x", "y")]
)
def test_different_answers(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


def end(final: str | None) -> End:
    return ended(final=final)


def test_tally() -> None:
    votes = tally([end(text) for text in ("7", "1,000", None, "1000", "7.0", "1000")])
    assert (votes.final, votes.share) == ("1,000", 0.5)
    assert votes.counts == {"1,000": 3, "7": 2}
    assert tally([end("2"), end("1")]).final == "2"
    assert tally([end(None), end("")]).final is None
    assert votes.counted == "box"


def test_without_a_box_the_last_lines_vote() -> None:
    said = ["It is\n**East**\n", "east", "so:\nWest\n\n", " EAST ", ""]
    ends = [replace(end(None), answer=text) for text in said]
    cut = [replace(one, finish_reason="length") for one in ends[2:3]]
    votes = tally(ends + cut)
    assert (votes.final, votes.counted, votes.share) == ("East", "last line", 3 / 6)
    assert votes.counts == {"East": 3, "West": 1}
    assert tally([*ends, end("7")]).counts == {"7": 1}
    assert tally(cut).final is None


def coin(so_far: str) -> dict[str, float]:
    r"""Says \boxed{1} or, half as often, \\boxed{2}, after some thought of a random length."""
    said = so_far.rpartition("|")[2]
    if "\\" not in said:
        return {"\\": 0.0, chr(0x41 + len(said) % 26): 1.5}
    box = said[said.rindex("\\") :]
    if len(box) < 7:
        return {"\\boxed{"[len(box)]: 1.0}
    return {7: {"1": 0.7, "2": 0.0}, 8: {"}": 1.0}}.get(len(box), {"\0": 1.0})


def test_samples_are_those_of_their_seeds_and_share_a_batch() -> None:
    settings = AnswerSettings(sampling=Sampling(temperature=1.0, seed=10), max_tokens=100)
    engine = Book(coin)
    prompt = Prompt(engine.tokenize("|"), UP_TO_BOX, thinking=True)
    ended = []
    votes = vote(engine, prompt, settings, 12, Recorded(ended))
    assert len(votes.samples) == len(ended) == len(engine.requests) == 12
    assert len({sample.reasoning for sample in votes.samples}) > 6
    assert sum(votes.counts.values()) == 12
    assert votes.share == votes.counts[votes.final] / 12 == max(votes.counts.values()) / 12
    for seed in (10, 15):
        alone = AnswerSettings(sampling=Sampling(temperature=1.0, seed=seed), max_tokens=100)
        *_, one = answer(Book(coin), prompt, alone)
        assert one.reasoning == votes.samples[seed - 10].reasoning


def test_samples_whose_thinking_is_closed_go_on_together() -> None:
    settings = AnswerSettings(sampling=Sampling(temperature=1.0), max_tokens=100, think_budget=3)
    engine = Book(coin)
    prompt = Prompt(engine.tokenize("|"), UP_TO_BOX, thinking=True)
    votes = vote(engine, prompt, settings, 12)
    assert all(sample.final in ("1", "2") for sample in votes.samples)
    assert 12 < len(engine.requests) <= 24
