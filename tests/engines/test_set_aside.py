"""What was set aside is found by what it shares with a prompt, and the oldest goes first."""

from __future__ import annotations

import numpy as np

from bitquilt.engines.set_aside import SetAside


def state(number: int) -> np.ndarray:
    return np.array([number], dtype=np.uint8)


def found(aside: SetAside, *prompt: int, least: int = 0) -> tuple[list[int], int] | None:
    held = aside.find(prompt, least)
    return None if held is None else (held[0], int(held[1][0]))


def test_most_of_a_prompt_is_found() -> None:
    aside = SetAside()
    aside.keep([1, 2, 3], state(3), most=20)
    aside.keep([1, 2, 9, 9], state(4), most=20)
    assert found(aside, 1, 2, 9, 5) == ([1, 2, 9, 9], 4)
    assert found(aside, 1, 2, 3, 4) == ([1, 2, 3], 3)
    assert found(aside, 1, 2, 3, 4, least=3) is None
    assert found(aside, 7, 1, 2) is None


def test_a_longer_one_takes_the_place_of_its_beginning() -> None:
    aside = SetAside()
    aside.keep([1, 2], state(2), most=5)
    aside.keep([1, 2, 3, 4, 5], state(5), most=5)
    assert found(aside, 1, 2, 8) == ([1, 2, 3, 4, 5], 5)


def test_the_oldest_goes_first_and_what_is_asked_for_stays() -> None:
    aside = SetAside()
    aside.keep([1, 1], state(1), most=4)
    aside.keep([2, 2], state(2), most=4)
    assert found(aside, 1, 1, 1)
    aside.keep([3, 3], state(3), most=4)
    assert found(aside, 2, 2, 2) is None
    assert found(aside, 1, 1, 1) == ([1, 1], 1)
