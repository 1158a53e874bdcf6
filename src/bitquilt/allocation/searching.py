"""One search from start to end: a method, its limits, what it says on the way, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from bitquilt.allocation.evopress import EvoPressSchedule, evolve
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.meter import Limits, Meter, SpentError
from bitquilt.allocation.race_search import RaceSearch
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import (
    AllocationSpace,
    AllocationVector,
    Float64Array,
    Incumbent,
)
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class SearchTask:
    """What is searched for."""

    space: AllocationSpace
    """What may be chosen, with its scores."""
    capacities: Mapping[str, int]
    """Name of a file → bytes that its matrices may take."""
    seed: int
    """Decides what is random in the search."""


def run_search(
    method: str,
    task: SearchTask,
    measurements: Measurements,
    limits: Limits,
    progress: Progress,
) -> dict[str, AllocationVector]:
    """Search until the method or its limits are at an end, or Ctrl-C.

    Args:
        method: ``race`` or ``evopress``.
        task: what is searched for.
        measurements: gives the KL of allocations, and counts.
        limits: where to end at the latest.
        progress: told how it goes; advances by the tokens that are read.

    Returns:
        Name of a file → the best allocation found, which is the exact knapsack's before the search
        has found anything.
    """
    space, names = task.space, {capacity: name for name, capacity in task.capacities.items()}
    best = {capacity: solve(space, capacity) for capacity in names}
    meter, history = measurements.meter, measurements.history
    meter.limit(limits)
    outlook = _Outlook(len(best), meter, progress)
    try:
        for step in _incumbents(method, task, measurements, progress):
            outlook.update(step)
            capacity, vector, kl, before, _ = step
            changed = vector != best[capacity]
            best[capacity] = vector
            name, size = names[capacity], space.nbytes(vector)
            qtypes = " ".join(space.allocation(vector).values())
            history.write({"best": qtypes, "file": name, "bytes": size, "at": kl} | meter.spent)
            if changed:  # every race reads other text, so a KL alone says nothing
                progress.say(
                    f"{name}: {meter.progress}, a mix of types of {size:,} bytes has KL {kl:.3g} "
                    f"nats/token; the best before it has {before:.3g} on the same text"
                )
    except SpentError:
        progress.say("The search has used up its tokens or its time")
    except KeyboardInterrupt:
        progress.say(
            "Stopped: the best mixes of types so far are kept, and the same command continues the "
            "search"
        )
    return {name: best[capacity] for name, capacity in task.capacities.items()}


class _Outlook:
    """Tells how many tokens a search will still read, from where its races stand.

    A capacity takes as many further rounds as its last one left rivals, each as long as that one
    was: rivals that are close to each other are proposed again until the text tells them apart, and
    when few are left a round has little to read (docs/decisions/forecast.md).
    """

    def __init__(self, capacities: int, meter: Meter, progress: Progress) -> None:
        self._capacities, self._meter, self._progress = capacities, meter, progress
        self._further: dict[int, int] = {}
        self._spent = meter.tokens

    def update(self, step: Incumbent) -> None:
        """Learn from a step."""
        spent, self._spent = self._spent, self._meter.tokens
        if step.rivals is None:
            return
        self._further[step.capacity] = step.rivals * (self._meter.tokens - spent)
        if len(self._further) == self._capacities:
            further = sum(self._further.values())
            self._progress.expect(min(further, self._meter.tokens_left))


def _incumbents(
    method: str, task: SearchTask, measurements: Measurements, progress: Progress
) -> Iterator[Incumbent]:
    """Yield the steps of a method."""
    rng = np.random.default_rng(task.seed)
    measure, meter = measurements.of(task.space), measurements.meter

    def evaluate(vectors: Sequence[AllocationVector], windows: Sequence[int]) -> Float64Array:
        before, remembered = meter.tokens, meter.remembered
        samples = measure(vectors, windows)
        known = meter.remembered - remembered
        progress.skip(known)
        progress.advance(meter.tokens - before - known)
        return samples

    capacities = list(dict.fromkeys(task.capacities.values()))
    if method == "race":
        windows = measurements.windows
        return RaceSearch(task.space, capacities, evaluate, windows, rng, progress).run()
    text = measurements.windows, measurements.meter.window_tokens
    schedule = EvoPressSchedule()
    runs = (evolve(task.space, c, evaluate, text, schedule, rng) for c in capacities)
    return chain.from_iterable(runs)
