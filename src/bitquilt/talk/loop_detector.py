"""Finds out, while a model talks, whether it repeats itself.

A text ends in a cycle of period p if each of its last symbols equals the one p before it. The last
place where the newest few symbols stood together proposes a period; from then on, one comparison
per symbol checks it. The symbols are the tokens. To find counting loops, they are also words and
numbers, where a number may differ from the one a period before, if all that differ do so by the
same amount.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

GRAM = 6
"""A period is proposed where so many symbols stood together before."""
PERIODS = 8
"""At most so many periods are checked at a time."""
EXACT_SPAN = 40
"""A cycle and its repeats must cover so many tokens: short ones are common in sound text."""
COUNTING_SPAN = 60
"""A counting loop must cover so many words and numbers: sound text counts too."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Loop:
    """A cycle of tokens that came at least twice."""

    start: int
    """The number of tokens before the first cycle."""
    period: int
    """The number of tokens in one cycle."""


class LoopDetector:
    """Reads one answer, token by token, in constant time for each."""

    def __init__(self) -> None:
        self._exact, self._counting = _Cycles(EXACT_SPAN), _Cycles(COUNTING_SPAN)
        self._count = 0
        self._places: list[int] = []
        """The index of the token that each word or number begins with."""
        self._digits = ""
        """Digits of the number that the last tokens spell; a token can be a single digit."""

    def push(self, token: int, text: str) -> Loop | None:
        """Take one token and its text.

        Returns:
            A loop as soon as it has come twice and covers enough tokens.
        """
        exact = self._exact.push(token)
        counting = None if exact else self._push_words(text)
        self._count += 1
        if exact:
            return Loop(*exact)
        if counting:
            start, period = counting
            return Loop(self._places[start], self._places[start + period] - self._places[start])
        return None

    def _push_words(self, text: str) -> tuple[int, int] | None:
        stripped = text.strip()
        if stripped.isdecimal() and (not self._digits or stripped == text):
            if not self._digits:
                self._places.append(self._count)
            self._digits += stripped
            return None  # until it is known that the number has ended
        found = None
        if self._digits:
            found = self._counting.push("#", int(self._digits))
            self._digits = ""
        if text and not found:
            self._places.append(self._count)
            number = _NUMBER.search(text)
            value = int(number.group()) if number else 0
            found = self._counting.push(_NUMBER.sub("#", text), value)
        return found


class _Cycles:
    """Finds the period of the end of a sequence of symbols, which have a kind and a value."""

    def __init__(self, span: int) -> None:
        self._span = span
        self._kinds: list[Hashable] = []
        self._values: list[int] = []
        self._last: dict[tuple[Hashable, ...], int] = {}
        self._runs: dict[int, tuple[int, int]] = {}
        """Period → how many symbols it has held for, and the difference between unequal values."""

    def push(self, kind: Hashable, value: int = 0) -> tuple[int, int] | None:
        """Take one symbol; returns start and period of a cycle that it completes."""
        here = len(self._kinds)
        self._kinds.append(kind)
        self._values.append(value)
        if self._runs:
            self._runs = {
                period: (length + 1, step)
                for period, (length, before) in self._runs.items()
                if (step := self._step(here, period, before)) is not None
            }
        gram = tuple(self._kinds[-GRAM:])
        period = here - self._last.get(gram, here)
        self._last[gram] = here
        if period and period not in self._runs and len(self._runs) < PERIODS:
            self._runs[period] = self._run(period)
        for period, (length, _) in self._runs.items():
            if length >= period and length + period >= self._span:
                return here + 1 - length - period, period
        return None

    def _step(self, place: int, period: int, step: int) -> int | None:
        """The difference of values if a symbol fits the one a period before; None otherwise."""
        if self._kinds[place] != self._kinds[place - period]:
            return None
        difference = self._values[place] - self._values[place - period]
        if difference and step not in (0, difference):
            return None
        return step or difference

    def _run(self, period: int) -> tuple[int, int]:
        """How far back a new period holds, and the difference between unequal values."""
        length, step = 0, 0
        for place in range(len(self._kinds) - 1, period - 1, -1):
            found = self._step(place, period, step)
            if found is None:
                break
            length, step = length + 1, found
        return length, step
