"""Progress on stderr: bars on a terminal, plain lines elsewhere, nothing on stdout ever.

One object is the only channel for what a run has to tell. Whoever works in a stage calls
:meth:`Progress.advance`; whoever has a sentence to say calls :meth:`Progress.say`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console

from bitquilt.errors import worded
from bitquilt.runtime.malloc import trim

LINE_SECONDS = 15.0
"""Off a terminal, a stage says how far it is at most this often."""


class Progress:
    """Tells what is going on: stages, how far each one is, and sentences."""

    def __init__(self) -> None:
        """Write to stderr."""
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._advance: list[Callable[[int], None]] = []

    def say(self, line: str) -> None:
        """Print one line; it names options as a :class:`~bitquilt.errors.UserError` does."""
        self.console.print(worded(line), markup=False)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[None]:
        """Show a stage of ``total`` steps while the block runs, and its seconds afterwards."""
        trim()  # what the stage before left is of other sizes
        started = time.monotonic()
        shown = self._bar if self.console.is_terminal else self._lines
        with shown(title, total) as advance:
            self._advance.append(advance)
            try:
                yield
            finally:
                self._advance.pop()
        self.say(f"{title}: {time.monotonic() - started:.0f} s")

    def advance(self, steps: int = 1) -> None:
        """Count steps of the innermost stage; without a stage nothing is counted."""
        if self._advance:
            self._advance[-1](steps)

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda steps: bar.advance(task, steps)

    @contextmanager
    def _lines(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        done, said = 0, time.monotonic()

        def advance(steps: int) -> None:
            nonlocal done, said
            done += steps
            if time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                self.say(f"{title}: {done} of {total}")

        yield advance


class Silent(Progress):
    """Says nothing: for callers who do not want to be told."""

    def __init__(self) -> None:
        """Tell nobody."""
        super().__init__()
        self.console.quiet = True
