"""What a search measured: remembered, counted, limited, and written down as it comes.

``search/history-*.jsonl`` in the work directory has one line per measurement (a mix, windows, and
KL by segments of text) and one per step forward (``best``). A measurement is a function of bank,
mix and text, so a search that starts again finds its measurements there and soon is where it was;
the report reads the same file.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.racing import EvaluateFn, by_segment
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array

Evaluate = Callable[[Sequence[Mapping[str, str]], Sequence[int]], NDArray[np.float32]]
"""(mixes, windows) → KL [mixes, windows, tokens]; :class:`.evaluator.Evaluator` or a pool of it."""

DIGITS = 6
"""Of a sample, so that a number read back is the number that was used."""


class SpentError(Exception):
    """A search has used up its tokens or its time."""


@dataclass(frozen=True)
class Limits:
    """Where a search ends at the latest."""

    tokens: float = math.inf
    """Token-forwards: tokens read, times mixes that read them."""
    seconds: float = math.inf


class Measurements:
    """KL of mixes on the windows of one text."""

    def __init__(self, evaluate: Evaluate, text: tuple[int, int], history: Path) -> None:
        """Begin, with what an earlier search wrote down.

        Args:
            evaluate: measures what is not known.
            text: windows that there are, and tokens of each.
            history: the file of what is known; made if missing.
        """
        self.tokens = 0
        """Token-forwards needed so far, remembered ones too."""
        self.windows, self.length = text
        self._evaluate, self._history = evaluate, history
        self._known = _read(history)
        self._used: set[tuple[str, int]] = set()
        self._started = time.monotonic()
        self._limits = Limits()
        self._working = 0.0
        self._worked = 0
        self._written = False

    def limit(self, limits: Limits) -> None:
        """Allow so much from now on."""
        tokens, seconds = limits.tokens + self.tokens, limits.seconds + self.seconds
        self._limits = Limits(tokens, seconds)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    @property
    def progress(self) -> str:
        """Tokens spent and time left, for people."""
        tokens, seconds = self._limits.tokens - self.tokens, self._limits.seconds - self.seconds
        pace = self._working / (self._worked * self.length) if self._worked else 0.0
        left = min(tokens * pace, seconds)
        return f"{self.tokens:,} of {self._limits.tokens:,} tokens, {left:.0f} s left at most"

    def of(self, mixes: AllocationSpace) -> EvaluateFn:
        """The measure for mixes of one menu."""

        def measure(vectors: Sequence[AllocationVector], windows: Sequence[int]) -> Float64Array:
            return self.samples([mixes.qtypes(vector) for vector in vectors], windows)

        return measure

    def samples(self, mixes: Sequence[Mapping[str, str]], windows: Sequence[int]) -> Float64Array:
        """KL [mixes, samples] at the same places of the text for all mixes.

        Raises:
            SpentError: that would go beyond the limits.
        """
        names = [" ".join(mix.values()) for mix in mixes]
        wanted = {(name, window) for name in names for window in windows} - self._used
        missing = [
            tuple(window for window in windows if (name, window) not in self._known)
            for name in names
        ]
        self._charge(len(wanted), sum(map(len, missing)))
        self._used |= wanted
        order = sorted(range(len(mixes)), key=lambda k: missing[k])
        for unread, group in groupby(order, key=lambda k: missing[k]):
            if unread:
                some = list(group)
                self._add([names[k] for k in some], [mixes[k] for k in some], unread)
        return np.array(
            [np.concatenate([self._known[name, window] for window in windows]) for name in names]
        )

    def _charge(self, wanted: int, missing: int) -> None:
        """Count windows that are wanted, and refuse if measuring the missing ones goes too far."""
        tokens = self.tokens + wanted * self.length
        pace = self._working / self._worked if self._worked else 0.0
        late = missing and self.seconds + missing * pace > self._limits.seconds
        if tokens > self._limits.tokens or late:
            raise SpentError
        self.tokens = tokens

    def _add(
        self, names: Sequence[str], mixes: Sequence[Mapping[str, str]], windows: Sequence[int]
    ) -> None:
        """Measure mixes and write them down."""
        started = time.monotonic()
        for name, own in zip(names, by_segment(self._evaluate(mixes, windows)), strict=True):
            kl = [[float(f"{value:.{DIGITS}g}") for value in window] for window in own]
            self._known |= {(name, w): one for w, one in zip(windows, kl, strict=True)}
            self.note({"mix": name, "windows": list(windows), "kl": kl})
        self._working += time.monotonic() - started
        self._worked += len(names) * len(windows)

    def note(self, line: dict[str, Any]) -> None:
        """Write a line of history, with the tokens and seconds so far."""
        line |= {"tokens": self.tokens, "seconds": round(self.seconds, 1)}
        self._history.parent.mkdir(parents=True, exist_ok=True)
        with self._history.open("a", encoding="utf-8") as file:
            # the line before may have been cut short by the end of its run
            file.write("\n" * (not self._written and file.tell() > 0) + json.dumps(line) + "\n")
        self._written = True


def history_of(work: Path, target: str, windows: int) -> Path:
    """The file of a search for a target on so many windows, in a work directory."""
    return work / "search" / f"history-{target}-{windows}.jsonl"


def latest_histories(work: Path) -> dict[str, Path]:
    """Target → the history that was written to last; none where no search ran."""
    found = sorted(work.glob("search/history-*.jsonl"), key=lambda path: path.stat().st_mtime)
    return {path.name.split("-")[1]: path for path in found}


def noted(history: Path) -> list[dict[str, Any]]:
    """What runs have noted, in that order; a line that was cut short is none."""
    found = []
    for line in history.read_text("utf-8").splitlines() if history.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _read(history: Path) -> dict[tuple[str, int], list[float]]:
    """The measurements of a history: (mix, window) → samples."""
    known: dict[tuple[str, int], list[float]] = {}
    for record in noted(history):
        for window, samples in zip(record.get("windows", ()), record.get("kl", ()), strict=True):
            known[record["mix"], window] = samples
    return known
