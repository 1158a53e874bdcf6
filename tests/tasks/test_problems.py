"""Shares, majorities, and what it takes to see a difference, against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitquilt.engines import GeneratedToken, Sampling
from bitquilt.runtime.progress import Silent
from bitquilt.tasks.problems import Answers, Manner, ask_problems
from bitquilt.tasks.scores import compare_problems, paired_difference, score_problems, share
from bitquilt.tasks.task_data import PROBLEMS, Problem
from tests.progress import Recorded


def answers(right: np.ndarray) -> Answers:
    final = np.where(right, "7", "8")
    no = np.zeros(right.shape, bool)
    tokens = np.full(right.shape, 50)
    return Answers(right=right, final=final, tokens=tokens, truncated=no, looping=no)


def test_all_right_is_not_beyond_doubt():
    """Wilson's interval for 20 of 20, as in any table of it."""
    found = share(np.ones((20, 1), bool))
    assert found.mean == 1.0
    assert found.low == pytest.approx(0.839, abs=1e-3)
    assert found.high == 1.0


def test_runs_of_the_same_items_are_not_independent():
    """Items that are always or never right say no more with ten runs than with one."""
    items = np.array([True] * 30 + [False] * 30)[:, None]
    once, ten = share(items), share(np.repeat(items, 10, axis=1))
    assert ten.high - ten.low == pytest.approx(once.high - once.low, rel=0.05)
    chance = share(np.random.default_rng(0).random((60, 10)) < 0.5)
    assert chance.high - chance.low < (once.high - once.low) / 2


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_intervals_cover_the_truth_over_items_and_runs(chance):
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        ability = random.beta(2 * chance, 2 * (1 - chance), (30, 1))
        found = share(random.random((30, 4)) < ability)
        hits += found.low <= chance <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_majority_and_shares():
    final = np.array([["7", "7", "8"], ["8", "8", "7"], ["", "7", ""], ["", "", ""]])
    right = final == "7"
    flags = np.array([[False, False, True]] * 4)
    tokens = np.full((4, 3), 9)
    given = Answers(right=right, final=final, tokens=tokens, truncated=flags, looping=~flags)
    found = score_problems("t", given)
    assert found.majority.mean == 0.5  # the first and the third
    assert found.pass_at_1.mean == pytest.approx(4 / 12)
    assert found.unboxed == pytest.approx(5 / 12)
    assert (found.truncated, found.looping) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_one_run_of_thirty_items_says_next_to_nothing():
    right = (np.arange(30) < 3)[:, None]
    assert 0.15 < score_problems("aime", answers(right)).detectable < 0.4
    assert score_problems("aime", answers(np.zeros((30, 1), bool))).detectable > 0.1


def test_repeats_that_a_difference_takes_are_enough():
    """With the number that is asked for, a known difference is seen four times in five."""
    random = np.random.default_rng(0)
    ability = random.uniform(0.2, 0.8, (200, 1))

    def runs(bonus: float, repeats: int) -> Answers:
        return answers(random.random((200, repeats)) < ability + bonus)

    needed = compare_problems(runs(0.0, 8), runs(0.05, 8), wanted=0.05).repeats
    assert needed is not None
    pairs = ((runs(0.0, needed), runs(0.05, needed)) for _ in range(60))
    seen = sum(compare_problems(*pair).difference.low > 0 for pair in pairs)
    assert 0.6 <= seen / 60 <= 0.97


def test_where_only_more_items_help_it_says_how_many():
    random = np.random.default_rng(0)
    first, second = (answers(np.repeat(random.random((30, 1)) < 0.5, 4, axis=1)) for _ in range(2))
    found = compare_problems(first, second)
    assert found.repeats is None
    assert found.items > 1000
    assert found.difference.low < 0 < found.difference.high


class Parrot:
    """An engine that says what it is given, one character a token."""

    class info:  # noqa: N801 (an attribute of engines)
        chat_template = "{# \\boxed{} #}{{ messages[0].content }}"
        special_tokens: dict[str, str] = {}  # noqa: RUF012
        sampling = Sampling(temperature=0.5)
        context = 1000

        @classmethod
        def template(cls, tools: bool) -> str:
            return cls.chat_template

    def __init__(self, says: dict[str, list[str]]) -> None:
        self.says, self.dropped = says, []

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        return [ord(letter) for letter in text]

    def stream(self, requests):
        return _Said(self, requests)


class _Said:
    def __init__(self, parrot, requests) -> None:
        self.parrot, self.requests = parrot, requests

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def drop(self, row):
        self.parrot.dropped.append(row)

    def __iter__(self):
        for row, request in enumerate(self.requests):
            question = "".join(map(chr, request.tokens))
            text = self.parrot.says[question][request.sampling.seed]
            for letter in text[: request.max_tokens]:
                if row in self.parrot.dropped:
                    break
                yield (
                    row,
                    GeneratedToken(
                        ord(letter), "" if letter == "." else letter, ends=letter == "."
                    ),
                )


def test_answers_are_read_as_users_see_them():
    engine = Parrot(
        {
            "a": ["so it is \\boxed{1,000}.", "\\boxed{999}."],
            "b": ["la " * 200, "I wonder whether it can be told at all, for nothing is clear"],
        }
    )
    steps = []
    manner = Manner(2, 50, Parrot.info.sampling)
    found = ask_problems(engine, [Problem("a", "1000"), Problem("b", "2")], manner, Recorded(steps))
    np.testing.assert_array_equal(found.right, [[True, False], [False, False]])
    np.testing.assert_array_equal(found.looping, [[False, False], [True, False]])
    np.testing.assert_array_equal(found.truncated, [[False, False], [False, True]])
    assert found.tokens[1, 0] < 50  # it was ended as soon as it went round in circles
    assert found.final[1, 1] == ""
    assert len(steps) == 4


def test_a_loop_is_wrong_whatever_it_boxes():
    found = _asked(Parrot({"a": ["The answer is \\boxed{7}. " * 20]}), max_tokens=500)
    assert found.looping.all()
    assert (found.final == "7").all()
    assert not found.right.any()


def test_a_template_that_does_not_ask_for_a_box_is_made_up_for():
    asks = "a\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    plain = Parrot({asks: ["\\boxed{7}."]})
    plain.info = type("info", (Parrot.info,), {"chat_template": "{{ messages[0].content }}"})
    assert _asked(plain).right.all()


def _asked(engine: Parrot, max_tokens: int = 50) -> Answers:
    manner = Manner(1, max_tokens, Parrot.info.sampling)
    return ask_problems(engine, [Problem("a", "7")], manner, Silent())


def test_models_that_agree_on_a_few_items_are_not_surely_equal():
    found = paired_difference(np.zeros(5))
    assert found.mean == 0.0
    assert found.low < -0.2
    assert found.high > 0.2
    many = paired_difference(np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 2000))
    assert many.high - many.low == pytest.approx(4 * np.sqrt(2 / 3 / 2000), rel=0.05)


def test_demo_problems_need_no_package():
    assert len(PROBLEMS["demo"]()) == 200
    assert math.isfinite(float(PROBLEMS["demo"]()[0].answer.split("/")[0]))
