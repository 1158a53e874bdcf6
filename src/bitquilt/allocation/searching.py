"""One search from start to end: a method, its limits, what it says on the way, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from bitquilt.allocation.evopress import Schedule, evolve
from bitquilt.allocation.measurements import Limits, Measurements, SpentError
from bitquilt.allocation.race_search import RaceSearch
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Incumbent
from bitquilt.runtime.progress import Progress


@dataclass(frozen=True)
class SearchTask:
    """What is searched for."""

    mixes: AllocationSpace
    """What may be chosen, with its scores."""
    capacities: Mapping[str, int]
    """Name of a file → bytes that its matrices may take."""
    seed: int


def run_search(
    method: str,
    task: SearchTask,
    measurements: Measurements,
    limits: Limits,
    progress: Progress,
) -> dict[str, AllocationVector]:
    """Search until the method or its limits are at an end, or Ctrl-C.

    Args:
        method: one of :data:`bitquilt.allocation.SEARCH_METHODS`.
        task: what is searched for.
        measurements: measures and counts.
        limits: where to end at the latest.
        progress: told how it goes.

    Returns:
        Name of a file → the best mix found.
    """
    mixes, names = task.mixes, {capacity: name for name, capacity in task.capacities.items()}
    best = {c: mixes.solve(mixes.scores, c, {}) for c in names}
    measurements.limit(limits)
    try:
        for capacity, mix, kl in _standings(method, task, measurements, progress):
            best[capacity] = mix
            size = mixes.nbytes(mix)
            qtypes = " ".join(mixes.qtypes(mix).values())
            measurements.note({"best": qtypes, "file": names[capacity], "bytes": size, "at": kl})
            progress.say(
                f"{names[capacity]}: KL {kl:.4g} in {size:,} bytes; {measurements.progress}"
            )
    except SpentError:
        progress.say("the search has used up what it was given")
    except KeyboardInterrupt:
        progress.say("stopped: the best mixes so far are kept, and the same command searches on")
    return {name: best[capacity] for name, capacity in task.capacities.items()}


def _standings(
    method: str, task: SearchTask, measurements: Measurements, progress: Progress
) -> Iterator[Incumbent]:
    """How a method gets on."""
    measure, rng = measurements.of(task.mixes), np.random.default_rng(task.seed)
    capacities = list(dict.fromkeys(task.capacities.values()))
    if method == "race":
        return RaceSearch(
            task.mixes, capacities, measure, measurements.windows, rng, progress
        ).run()
    if method == "evopress":
        text = measurements.windows, measurements.length
        runs = (evolve(task.mixes, c, measure, text, Schedule(), rng) for c in capacities)
        return chain.from_iterable(runs)
    return iter(())
