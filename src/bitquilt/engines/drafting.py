"""Speculative decoding: a small model writes a few tokens ahead, the large one reads them at once.

The large model's sampler draws at every place as it does without a draft, from the large model's
logits and with the same random numbers. Tokens of the draft are kept for as long as they are the
ones that were drawn, so an answer is the one that the large model gives alone, whatever penalties,
grammars and temperatures it has (Leviathan et al. 2023, arXiv 2211.17192; a draft of likeliest
tokens is kept with the probability that the large model gives it, as their rule says too).
Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import numpy as np

from bitquilt.engines.backend import Backend, Logits
from bitquilt.errors import UserError

TIMED_STEPS = 12
"""Steps of each kind by which it is told whether drafts are faster, for each number of rows."""
RETRY_STEPS = 256
"""After so many steps the slower kind is tried again: another text may be easier to draft."""
DRAFT_TOKENS = 8
"""A draft has at most this many tokens."""
LEAST_SURE = 0.6
"""A draft ends where the small model gives its likeliest token less probability than this."""


class Verifier(Backend, Protocol):
    """A backend whose rows can read several tokens at once, and take some of them back."""

    def verify(self, tokens: Sequence[Sequence[int]]) -> list[Logits]:
        """Append tokens to each row; returns logits after each of them, float32 [n, V] a row."""
        ...

    def retract(self, counts: Sequence[int]) -> None:
        """Forget the last tokens of each row, as many as its count."""
        ...

    @property
    def at_once(self) -> int:
        """How many tokens all rows together may read at once."""
        ...

    @property
    def retracts(self) -> bool:
        """Whether it can: a recurrent model keeps a state from which nothing can be taken."""
        ...

    def ordinary_text(self, token: int) -> str | None:
        """The text of a token as the model's file has it; None where it is no part of a text."""
        ...


class Step:
    """A step of the large model."""

    def __init__(self, drafted: bool) -> None:
        self.drafted = drafted
        """Whether drafts are written for it."""
        self.tokens = 0
        """How many tokens it gave, of all rows."""


class Pace:
    """Which steps give more tokens a second, those with drafts or those without.

    That depends on the machine, on the two models and on the text: where arithmetic is what a step
    takes its time for, reading n tokens takes as long as n steps.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps = {kind: deque[tuple[float, int]](maxlen=TIMED_STEPS) for kind in (False, True)}
        self._last: bool | None = None
        self._since = 0

    @property
    def drafting(self) -> bool:
        """Whether the next step should have drafts."""
        for kind, steps in self._steps.items():
            if len(steps) < TIMED_STEPS:
                return kind
        seconds = {
            kind: sum(time for time, _ in steps) / sum(tokens for _, tokens in steps)
            for kind, steps in self._steps.items()
        }
        return seconds[True] <= seconds[False]

    @contextmanager
    def step(self, possible: bool) -> Iterator[Step]:
        """Time a step; with drafts, if they are possible and not known to be slower."""
        step, began = Step(possible and self.drafting), self._clock()
        yield step
        # the small model catches up in its first step after others: that one tells nothing
        if step.drafted == self._last and step.tokens:
            self._steps[step.drafted].append((self._clock() - began, step.tokens))
        self._last, self._since = step.drafted, self._since + 1
        if self._since == RETRY_STEPS:
            self._since = 0
            self._steps[not step.drafted].clear()


class Drafter:
    """A small model that writes ahead for the rows of a large one."""

    def __init__(
        self,
        large: Verifier,
        small: Verifier,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Take a model and the one that writes ahead for it.

        Control tokens may have other names in the two, and one may know more tokens than the other.

        Args:
            large: says the answers.
            small: writes ahead.
            clock: tells the seconds of steps.

        Raises:
            UserError: a token is another text for each of them, or one cannot take tokens back.
        """
        self.large, self._small = large, small
        self._paces = defaultdict[int, Pace](partial(Pace, clock))
        """Number of rows → the pace of steps with so many."""
        self._common = min(large.info.vocabulary, small.info.vocabulary)
        for model in (large, small):
            if not model.retracts:
                raise UserError(
                    f"{model.info.name} is recurrent, so it cannot take tokens of a draft back; "
                    "leave the draft model out"
                )
        for token in range(self._common):
            texts = large.ordinary_text(token), small.ordinary_text(token)
            if None not in texts and texts[0] != texts[1]:
                raise UserError(
                    f"{small.info.name} cannot draft for {large.info.name}: token {token} is "
                    f"{texts[1]!r} in the small model and {texts[0]!r} in the large one; give a "
                    "smaller model of the same family"
                )

    def step(self, rows: int) -> AbstractContextManager[Step]:
        """Begin a step of so many rows, which says whether drafts are to be written for it."""
        return self._paces[rows].step(possible=rows * (DRAFT_TOKENS + 1) <= self.large.at_once)

    def drafts(self, rows: Sequence[Sequence[int]], most: Sequence[int]) -> list[list[int]]:
        """Write ahead.

        Args:
            rows: all tokens of each of the B rows so far.
            most: the most tokens that the draft of each row may have.

        Returns:
            A draft for each row. It is empty where the row has tokens that only the large model
            knows, as those of an image, and where the small model is not sure of the next one.
        """
        drafts: list[list[int]] = [[] for _ in rows]
        going = [i for i, row in enumerate(rows) if most[i] > 0 and max(row) < self._common]
        if not going:
            return drafts
        logits, _ = self._small.prefill([rows[i] for i in going], DRAFT_TOKENS)
        while True:
            sure = []
            for place, i in enumerate(going):
                token = int(logits[place, : self._common].argmax())
                if _probability(logits[place], token) >= LEAST_SURE:
                    drafts[i].append(token)
                    if len(drafts[i]) < min(DRAFT_TOKENS, most[i]):
                        sure.append(place)
            if not sure:
                return drafts
            if len(sure) < len(going):
                self._small.retain(sure)
                going = [going[place] for place in sure]
            logits = self._small.step([drafts[i][-1] for i in going])


def _probability(logits: Logits, token: int) -> float:
    """Return the probability of a token for logits [V]; NaN where they are no numbers."""
    return 1 / float(np.exp(logits - logits[token]).sum(dtype=np.float64))
