"""How far a whole job is: stages, the seconds that each was expected to take, and those it takes.

Nothing here reads a clock or prints: :class:`bitquilt.runtime.progress.Progress` does.

The time left is what is left of this stage, by its own speed as far as that can be told and by the
forecast before, and of the later ones the forecast, corrected by how wrong it was so far: of stages
that are alike above all, and of those of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TRUSTED = 0.2
"""The share of a stage after which its own speed counts as much as the forecast."""
DOUBT = 0.05
"""Errors of the forecast count as if this share of the job had been as expected."""
LIKENESS = 1.5
"""How much more the error of stages that are alike says of the next of them than all errors say."""


@dataclass(frozen=True)
class ExpectedStage:
    """One stage of a job that is to come."""

    kind: str
    """What it does, as :meth:`Progress.stage` is told; several stages may do the same."""
    seconds: float
    """What it is expected to take on this machine."""
    like: str = ""
    """What its speed goes with: stages that are alike are wrong alike."""


@dataclass
class _Open:
    """A stage that has begun; the ones within it are not part of it."""

    kind: str
    like: str
    expected: float
    total: float
    done: float = 0.0
    seconds: float = 0.0
    """Its own seconds, up to the last change of the job."""
    since: float = 0.0
    """Those of them since the last advance."""

    @property
    def share(self) -> float:
        """How much of it is done."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0


@dataclass
class Job:
    """The stages of one job, in their order; times are those of any clock."""

    expected: Sequence[ExpectedStage]
    started: float
    """The time when the job began."""
    before: float = 0.0
    """The seconds of this machine that earlier runs of the same job have done the work of."""
    _coming: list[ExpectedStage] = field(init=False)
    _open: list[_Open] = field(init=False, default_factory=list)
    _taken: list[_Taken] = field(init=False, default_factory=list)
    """What has ended."""
    _now: float = field(init=False)
    _most: float = field(init=False, default=0.0)
    """The largest share that was told."""

    def __post_init__(self) -> None:
        """Begin before the first stage."""
        self._coming = list(self.expected)
        self._now = self.started

    def begin(self, kind: str, total: float, now: float) -> None:
        """Begin a stage of ``total`` units; what was to come before it has been done before."""
        self._pass(now)
        seconds, like = 0.0, ""
        kinds = [stage.kind for stage in self._coming]
        if kind in kinds:
            place = kinds.index(kind)
            seconds, like = self._coming[place].seconds, self._coming[place].like
            passed, later = self._coming[:place], self._coming[place + 1 :]
            if self._open:  # a stage within another comes early: the others are still to come
                later = [*passed, *later]
            else:
                self.before += sum(stage.seconds for stage in passed)
            self._coming = later
        self._open.append(_Open(kind, like, seconds, total))

    def advance(self, units: float, now: float) -> None:
        """Count units of the innermost stage."""
        self._pass(now)
        if self._open:
            self._open[-1].done += units
            self._open[-1].since = 0.0

    def skip(self, units: float, now: float) -> None:
        """Take units out of the innermost stage that an earlier run has done."""
        self._pass(now)
        if self._open and (stage := self._open[-1]).total > 0:
            seconds = stage.expected * min(1.0, units / stage.total)
            self.before += seconds
            stage.expected -= seconds
            stage.total = max(0.0, stage.total - units)

    def expect(self, further: float, now: float) -> None:
        """Expect so many more units of the innermost stage, each as long as was thought."""
        self._pass(now)
        if self._open and (stage := self._open[-1]).total > 0:
            total = stage.done + further
            stage.expected *= total / stage.total
            stage.total = total

    def end(self, now: float) -> None:
        """End the innermost stage."""
        self._pass(now)
        stage = self._open.pop()
        if not stage.done:  # there was nothing left to do
            self.before += max(0.0, stage.expected - stage.seconds)
        self._taken.append(_Taken.of(stage))

    def left(self, now: float) -> float:
        """Return the seconds that the job is expected to take from now on."""
        self._pass(now)
        later = sum(stage.seconds * self._error(stage.kind, stage.like) for stage in self._coming)
        return later + sum(map(self._left_of, self._open))

    def share(self, now: float) -> float:
        """Return how much of the job is done, from 0 to 1: never less than it was before.

        The job is all of it, with what earlier runs have done.
        """
        spent, left = self.before + now - self.started, self.left(now)
        self._most = max(self._most, spent / (spent + left) if spent + left > 0 else 1.0)
        return self._most

    def _pass(self, now: float) -> None:
        """Let time pass: the innermost stage has it."""
        if self._open:
            self._open[-1].seconds += now - self._now
            self._open[-1].since += now - self._now
        self._now = now

    def _left_of(self, stage: _Open) -> float:
        """Return the seconds that are left of a stage."""
        share = stage.share
        forecast = stage.expected * self._error(stage.kind, stage.like) * (1 - share)
        if not share:
            own, trust = 0.0, 0.0
        else:
            before = stage.seconds - stage.since
            own, trust = before * (1 - share) / share, share / (share + TRUSTED)
        if not stage.expected:
            trust = 1.0
        left = trust * own + (1 - trust) * forecast
        # between two advances time passes, and the later the next one is the less is known of it
        return max(left - stage.since, 0.1 * min(left, stage.since))

    def _error(self, kind: str, like: str) -> float:
        """Return what stages of a kind take over what they were expected to take."""
        doubt = DOUBT * sum(stage.seconds for stage in self.expected)
        if not doubt:
            return 1.0
        known = [*self._taken, *(_Taken.of(stage) for stage in self._open)]
        error = 1.0
        for some, weight in (
            (known, doubt),
            ([taken for taken in known if taken.like == like], doubt / LIKENESS),
            ([taken for taken in known if taken.kind == kind], doubt),
        ):
            seconds = sum(taken.seconds for taken in some) + weight * error
            error = seconds / (sum(taken.expected for taken in some) + weight)
        return error


@dataclass(frozen=True)
class _Taken:
    """What a stage took so far, and what so much of it was expected to take."""

    kind: str
    like: str
    seconds: float
    expected: float

    @classmethod
    def of(cls, stage: _Open) -> _Taken:
        """Count what is done; a stage that ends early, or was done before, says nothing of more."""
        seconds = stage.seconds - stage.since if stage.share and stage.expected else 0.0
        return cls(stage.kind, stage.like, seconds, stage.expected * stage.share)
