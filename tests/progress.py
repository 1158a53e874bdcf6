"""Progress for tests: some that keep what they are told, and one that must have nothing to say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitquilt.runtime.progress import Silent


class Recorded(Silent):
    """Keeps the units of every advance, and every line."""

    def __init__(self, steps: list[float] | None = None, lines: list[str] | None = None) -> None:
        super().__init__()
        self.steps = [] if steps is None else steps
        self.lines = [] if lines is None else lines

    def advance(self, units: float = 1) -> None:
        self.steps.append(units)

    def say(self, line: str) -> None:
        self.lines.append(line)


class Speechless(Recorded):
    """Fails where a sentence is said."""

    def say(self, line: str) -> None:
        raise AssertionError(line)


class Kinds(Silent):
    """Keeps the kinds of stages, their units, and every line."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []
        self.lines: list[str] = []
        self.units: list[list[float]] = []
        """Of each stage, how many were announced and how many were counted."""
        self._unfinished: list[list[float]] = []

    @contextmanager
    def stage(self, title: str, total: float, kind: str = "") -> Iterator[None]:
        self.kinds.append(kind)
        self.units.append([total, 0.0])
        self._unfinished.append(self.units[-1])
        with super().stage(title, total, kind):
            yield
        self._unfinished.pop()

    def advance(self, units: float = 1) -> None:
        if self._unfinished:
            self._unfinished[-1][1] += units
        super().advance(units)

    def say(self, line: str) -> None:
        self.lines.append(line)
