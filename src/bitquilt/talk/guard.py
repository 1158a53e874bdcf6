"""Whether a model goes round in circles, told while it talks.

The end of a text is a cycle of period p where each of its last symbols is the one p before it. The
last place where the newest few symbols stood together proposes a period, which is then checked by
one comparison per symbol. Symbols are the tokens, and, to see through counting loops, the tokens
with every number in them as one and the same symbol.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass

GRAM = 6
"""Symbols that must have stood together before to propose a period."""
PERIODS = 16
"""Periods that are followed at a time."""
EXACT_SPAN = 40
"""Tokens that a cycle and its repeats must cover: short ones are common in sound text."""
NEAR_SPAN = 120
"""The same where numbers do not count: columns of sums and tables are like that."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Loop:
    """A cycle that came at least twice."""

    start: int
    """The number of tokens before its first coming."""
    period: int
    """Tokens from its first coming to its second."""


class Guard:
    """Reads one answer, token by token, in constant time for each."""

    def __init__(self) -> None:
        self._exact, self._near = _Cycles(EXACT_SPAN), _Cycles(NEAR_SPAN)
        self._count = 0
        self._places: list[int] = []
        self._in_number = False

    def push(self, token: int, text: str) -> Loop | None:
        """Take one token and its text; a loop as soon as it has come twice and spans enough."""
        near = self._push_near(text)
        exact = self._exact.push(token)
        self._count += 1
        if exact:
            return Loop(*exact)
        if near:
            start, period = near
            return Loop(self._places[start], self._places[start + period] - self._places[start])
        return None

    def _push_near(self, text: str) -> tuple[int, int] | None:
        symbol = _NUMBER.sub("#", text)
        number = symbol.strip() == "#"
        if not text or (number and self._in_number):
            return None  # a number goes on
        self._in_number = number
        self._places.append(self._count)
        return self._near.push("#" if number else symbol)


class _Cycles:
    """Finds the period of the end of a sequence."""

    def __init__(self, span: int) -> None:
        self._span = span
        self._symbols: list[Hashable] = []
        self._last: dict[tuple[Hashable, ...], int] = {}
        self._runs: dict[int, int] = {}
        """Period → how many of the last symbols are the one that many before."""

    def push(self, symbol: Hashable) -> tuple[int, int] | None:
        """Start and period of a cycle that the symbol completes."""
        symbols = self._symbols
        symbols.append(symbol)
        here = len(symbols) - 1
        self._runs = {p: n + 1 for p, n in self._runs.items() if symbols[here - p] == symbol}
        gram = tuple(symbols[-GRAM:])
        before = self._last.get(gram)
        self._last[gram] = here
        if before is not None and len(self._runs) < PERIODS and here - before not in self._runs:
            self._runs[here - before] = self._run(here - before)
        for period, run in self._runs.items():
            if run >= period and run + period >= self._span:
                return here + 1 - run - period, period
        return None

    def _run(self, period: int) -> int:
        symbols, length = self._symbols, len(self._symbols)
        run = GRAM
        while run + period < length and symbols[-1 - run] == symbols[-1 - run - period]:
            run += 1
        return run
