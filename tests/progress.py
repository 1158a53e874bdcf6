"""Progress for tests: one that keeps what it is told, and one that must have nothing to say."""

from __future__ import annotations

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
