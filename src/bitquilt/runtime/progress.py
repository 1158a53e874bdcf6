"""Progress on stderr: one bar on a terminal, plain lines elsewhere, nothing on stdout ever.

One object is the only channel for what a run has to tell. Whoever knows what a whole job will take
opens :meth:`Progress.job`; whoever works in a stage calls :meth:`Progress.advance`; whoever has a
sentence to say calls :meth:`Progress.say`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import rich.progress
from rich.console import Console
from rich.text import Text

from bitquilt.errors import worded
from bitquilt.runtime.job import ExpectedStage, Job
from bitquilt.runtime.malloc import trim

LINE_SECONDS = 15.0
"""Off a terminal, it is said how far a job or a stage is at most this often."""
BAR_SECONDS = 0.25
"""On a terminal, the bar of a job moves this often."""


class Progress:
    """Tells what is going on: a job and its stages, how far they are, and sentences."""

    def __init__(self) -> None:
        """Write to stderr."""
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._advance: list[Callable[[float], None]] = []
        self._titles: list[str] = []
        self._job: Job | None = None
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        """Print one line, its options as its reader can type them."""
        self.console.print(worded(line), markup=False)

    @contextmanager
    def job(self, expected: Sequence[ExpectedStage], before: float = 0.0) -> Iterator[None]:
        """Show one bar, or lines, for all stages while the block runs, and the time left.

        Stages that nobody expected have a place in it, too. A job within a job is part of it.

        Args:
            expected: the stages in their order, with the seconds that they are expected to take.
            before: the seconds that would have to be added if earlier runs had done nothing.
        """
        if self._job is not None:
            yield
            return
        self._job = Job(expected, time.monotonic(), before)
        shown = self._job_bar if self.console.is_terminal else self._job_lines
        try:
            with shown():
                yield
        finally:
            self._job = None

    def time_left(self) -> tuple[float, float] | None:
        """Return the share of the job that is done and the seconds left; None without a job."""
        if self._job is None:
            return None
        with self._lock:
            now = time.monotonic()
            return self._job.share(now), self._job.left(now)

    @contextmanager
    def stage(self, title: str, total: float, kind: str = "") -> Iterator[None]:
        """Show a stage of ``total`` units while the block runs, and its seconds afterwards.

        Args:
            title: what is done, for people.
            total: how many units :meth:`advance` is going to count. Each takes about as long.
            kind: under which kind a job expects it.
        """
        trim()  # what the stage before left is of other sizes
        started = time.monotonic()
        with self._shown(title, total, kind) as advance:
            self._advance.append(advance)
            self._titles.append(title)
            try:
                yield
            finally:
                self._titles.pop()
                self._advance.pop()
        self.say(f"{title}: {time.monotonic() - started:.0f} s")

    def advance(self, units: float = 1) -> None:
        """Count units of the innermost stage; without a stage nothing is counted."""
        if self._advance:
            self._advance[-1](units)

    def skip(self, units: float) -> None:
        """Take units out of the innermost stage of a job: an earlier run has done them."""
        if self._job is not None:
            with self._lock:
                self._job.skip(units, time.monotonic())

    def expect(self, further: float) -> None:
        """Expect so many more units of the innermost stage of a job than were counted so far."""
        if self._job is not None:
            with self._lock:
                self._job.expect(further, time.monotonic())

    def _shown(
        self, title: str, total: float, kind: str
    ) -> AbstractContextManager[Callable[[float], None]]:
        if self._job is not None:
            return self._in_job(self._job, total, kind)
        return (self._bar if self.console.is_terminal else self._lines)(title, total)

    @contextmanager
    def _in_job(self, job: Job, total: float, kind: str) -> Iterator[Callable[[float], None]]:
        """A stage as part of a job; what is shown of it is shown by the job."""
        with self._lock:
            job.begin(kind, total, time.monotonic())

        def advance(units: float) -> None:
            with self._lock:
                job.advance(units, time.monotonic())

        try:
            yield advance
        finally:
            with self._lock:
                job.end(time.monotonic())

    @contextmanager
    def _job_bar(self) -> Iterator[None]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
        )
        with rich.progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=1.0, left="")

            def show() -> None:
                if (now := self.time_left()) is not None:
                    share, left = now
                    title = self._titles[-1] if self._titles else ""
                    bar.update(task, completed=share, description=title, left=f"{clock(left)} left")

            with _every(BAR_SECONDS, show):
                yield

    @contextmanager
    def _job_lines(self) -> Iterator[None]:
        said = ""

        def show() -> None:
            nonlocal said
            if (now := self.time_left()) is not None and self._titles:
                share, left = now
                line = f"{self._titles[-1]}: {share:.0%} of all is done, {clock(left)} left"
                if line != said:
                    said = line
                    self.say(line)

        with _every(LINE_SECONDS, show):
            yield

    @contextmanager
    def _bar(self, title: str, total: float) -> Iterator[Callable[[float], None]]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            _TimeLeft(),
        )
        with rich.progress.Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda units: bar.advance(task, units)

    @contextmanager
    def _lines(self, title: str, total: float) -> Iterator[Callable[[float], None]]:
        done, said = 0.0, time.monotonic()

        def advance(units: float) -> None:
            nonlocal done, said
            done += units
            if time.monotonic() - said > LINE_SECONDS:
                said = time.monotonic()
                self.say(f"{title}: {done / total if total else 1:.0%} is done")

        yield advance


class _TimeLeft(rich.progress.ProgressColumn):
    """The time left in words, as that of a job; empty where it is not known yet."""

    def render(self, task: rich.progress.Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{clock(left)} left")


class Silent(Progress):
    """Says nothing: for callers who do not want to be told."""

    def __init__(self) -> None:
        """Tell nobody."""
        super().__init__()
        self.console.quiet = True


def clock(seconds: float) -> str:
    """Write seconds for people, as ``45 s``, ``12 min`` or ``1 h 5 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _every(seconds: float, show: Callable[[], None]) -> Iterator[None]:
    """While the block runs, call something every so many seconds, in a thread of its own."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            show()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
