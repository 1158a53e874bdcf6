"""Loops are found when they have come twice, and sound text is left alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitquilt.talk.loop_detector import COUNTING_SPAN, EXACT_SPAN, Loop, LoopDetector


def first_loop(
    tokens: Sequence[int], texts: Sequence[str] | None = None
) -> tuple[int, Loop] | None:
    """How many tokens it took to see a loop, and the loop."""
    detector = LoopDetector()
    for place, token in enumerate(tokens):
        if loop := detector.push(token, texts[place] if texts else f" word{token}"):
            return place + 1, loop
    return None


def spelled(text: str) -> tuple[list[int], list[str]]:
    """Characters as tokens: numbers come digit by digit."""
    return [ord(char) for char in text], list(text)


@given(
    prefix=st.integers(0, 60),
    period=st.integers(1, 90),
    seed=st.integers(0, 10_000),
)
def test_a_cycle_is_found_when_it_has_come_twice(prefix: int, period: int, seed: int) -> None:
    draw = random.Random(seed)
    before = [draw.randrange(10**6) for _ in range(prefix)]
    cycle = [draw.randrange(10**6) for _ in range(period)]
    tokens = before + cycle * (2 + EXACT_SPAN // period)
    found = first_loop(tokens)
    assert found is not None
    seen, loop = found
    assert seen == prefix + max(2 * period, EXACT_SPAN)
    assert loop == Loop(prefix, period)


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=1))
def test_no_cycle_escapes_for_long(before: list[int], cycle: list[int]) -> None:
    """Cycles that repeat parts of themselves too."""
    tokens = before + cycle * (4 + 2 * EXACT_SPAN // len(cycle))
    found = first_loop(tokens)
    assert found is not None
    seen, loop = found
    assert seen <= len(before) + 3 * len(cycle) + 2 * EXACT_SPAN
    end = tokens[loop.start : seen]
    assert end[loop.period :] == end[: -loop.period]


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_random_text_has_no_loops(seed: int) -> None:
    draw = random.Random(seed)
    assert first_loop([draw.randrange(1000) for _ in range(2000)]) is None


@pytest.mark.parametrize(
    "line",
    [
        "Step {0}: the number {0} is not a prime number, so we look at the next one.\n",
        "If x = {0}, then x + 1 = {1}, which is too small.\n",
        "Wait, let me check {0} again.\n",
    ],
)
def test_counting_loops(line: str) -> None:
    lines = [line.format(n, n + 1) for n in range(7, 60)]
    start = "Let us see.\n"
    found = first_loop(*spelled(start + "".join(lines)))
    assert found is not None
    seen, loop = found
    assert loop.start <= len(start) + len(lines[0])
    symbols = max(2 * len(lines[0]), COUNTING_SPAN + len(lines[0]))
    assert seen <= loop.start + symbols + 8


def test_counting_by_any_step() -> None:
    text = "".join(f"That leaves {n} marbles in the bag; " for n in range(100, 0, -5))
    assert first_loop(*spelled(text)) is not None


@pytest.mark.parametrize(
    "text",
    [
        "ones: 5 + 10 - 9 = 6, borrow 1\ntens: 0 + 10 - 1 - 1 = 8, borrow 1\n"
        "hundreds: 7 + 10 - 9 = 8, borrow 1\nthousands: 4 - 1 - 1 = 2\n",
        "291 = 200 + 90 + 1\n200 × 2 = 400\n90 × 2 = 180\n1 × 2 = 2\n400 + 180 = 580\n"
        "580 + 2 = 582\n291 × 2 = 582\n291 = 200 + 90 + 1\n200 × 3 = 600\n90 × 3 = 270\n"
        "1 × 3 = 3\n600 + 270 = 870\n870 + 3 = 873\n291 × 3 = 873\n",
        "1 + 1 = 2, 2 + 1 = 3, 3 + 1 = 4, and 4 + 1 = 5.\n",
        "3.14159265358979323846264338327950288419716939937510582097494459",
        "10000000000000000000000000000000000",
    ],
)
def test_sound_text_is_left_alone(text: str) -> None:
    assert first_loop(*spelled(text)) is None


def test_numbers_may_be_single_tokens() -> None:
    words = [f"{word} " for n in range(30) for word in ("so", str(n), "is", "one", "of", "many,")]
    found = first_loop(range(len(words)), words)
    assert found is not None
    assert found[1] == Loop(0, 6)
