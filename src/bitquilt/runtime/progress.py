"""Progress on stderr: bars on a terminal, plain lines elsewhere, nothing on stdout ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bitquilt.runtime.malloc import trim

Step = Callable[[], None]

LINE_SECONDS = 15.0
"""Off a terminal, a stage says how far it is at most this often."""


class Reporter:
    """Says what is going on."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line, markup=False)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Step]:
        """A stage of ``total`` steps; call what it yields after each."""
        trim()  # what the stage before left is of other sizes
        started = time.monotonic()
        with (
            self._bar(title, total)
            if self.console.is_terminal
            else self._lines(title, total) as step
        ):
            yield step
        self.say(f"{title}: {time.monotonic() - started:.0f} s")

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Step]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)

    @contextmanager
    def _lines(self, title: str, total: int) -> Iterator[Step]:
        done, said = 0, time.monotonic()

        def step() -> None:
            nonlocal done, said
            done += 1
            if time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                self.say(f"{title}: {done} of {total}")

        yield step
