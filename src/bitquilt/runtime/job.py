"""How far a whole job is: stages, the seconds that each was expected to take, and those it takes.

Nothing here reads a clock or prints: :class:`bitquilt.runtime.progress.Progress` does.

The time left is what is left of this stage, by its own speed as far as that can be told and by the
forecast before, and of the later ones the forecast, corrected by how wrong it was so far: of stages
of the same kind above all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

TRUSTED = 0.2
"""The share of a stage after which its own speed counts as much as the forecast."""
DOUBT = 0.05
"""Errors of the forecast count as if this share of the job had been as expected."""
OWN_KIND = 1.5
"""How much more the error of stages of one kind says of the next of them than all errors say."""


@dataclass(frozen=True)
class ExpectedStage:
    """One stage of a job that is to come."""

    kind: str
    """What it does, as :meth:`Progress.stage` is told; several stages may do the same."""
    seconds: float
    """What it is expected to take on this machine."""


@dataclass
class _Open:
    """A stage that has begun; the ones within it are not part of it."""

    kind: str
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
    _coming: list[ExpectedStage] = field(init=False)
    _open: list[_Open] = field(init=False, default_factory=list)
    _taken: dict[str, list[float]] = field(init=False)
    """Kind → seconds taken and seconds expected, of what is done."""
    _now: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin before the first stage."""
        self._coming = list(self.expected)
        self._taken = defaultdict(lambda: [0.0, 0.0])
        self._now = self.started

    def begin(self, kind: str, total: float, now: float) -> None:
        """Begin a stage of ``total`` units; what was to come before it is not needed any more."""
        self._pass(now)
        seconds = 0.0
        kinds = [stage.kind for stage in self._coming]
        if kind in kinds:
            place = kinds.index(kind)
            seconds = self._coming[place].seconds
            # a stage within another comes early: the others are still to come
            self._coming = (
                self._coming[place + 1 :]
                if not self._open
                else [
                    *self._coming[:place],
                    *self._coming[place + 1 :],
                ]
            )
        self._open.append(_Open(kind, seconds, total))

    def advance(self, units: float, now: float) -> None:
        """Count units of the innermost stage."""
        self._pass(now)
        if self._open:
            self._open[-1].done += units
            self._open[-1].since = 0.0

    def end(self, now: float) -> None:
        """End the innermost stage."""
        self._pass(now)
        stage = self._open.pop()
        if stage.expected:
            self._taken[stage.kind][0] += stage.seconds
            self._taken[stage.kind][1] += stage.expected

    def left(self, now: float) -> float:
        """Return the seconds that the job is expected to take from now on."""
        self._pass(now)
        later = sum(stage.seconds * self._error(stage.kind) for stage in self._coming)
        return later + sum(map(self._left_of, self._open))

    def share(self, now: float) -> float:
        """Return how much of the job's time has passed, from 0 to 1."""
        spent, left = now - self.started, self.left(now)
        return spent / (spent + left) if spent + left > 0 else 1.0

    def _pass(self, now: float) -> None:
        """Let time pass: the innermost stage has it."""
        if self._open:
            self._open[-1].seconds += now - self._now
            self._open[-1].since += now - self._now
        self._now = now

    def _left_of(self, stage: _Open) -> float:
        """Return the seconds that are left of a stage."""
        share = stage.share
        forecast = stage.expected * self._error(stage.kind) * (1 - share)
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

    def _error(self, kind: str) -> float:
        """Return what stages of a kind take over what they were expected to take."""
        taken: dict[str, float] = defaultdict(float)
        expected: dict[str, float] = defaultdict(float)
        for known, (seconds, foreseen) in self._taken.items():
            taken[known] += seconds
            expected[known] += foreseen
        for stage in self._open:
            if stage.expected and stage.share:
                taken[stage.kind] += stage.seconds - stage.since
                expected[stage.kind] += stage.expected * stage.share
        doubt = DOUBT * sum(stage.seconds for stage in self.expected)
        if not doubt:
            return 1.0
        overall = (sum(taken.values()) + doubt) / (sum(expected.values()) + doubt)
        weight = doubt / OWN_KIND
        return (taken[kind] + weight * overall) / (expected[kind] + weight)
