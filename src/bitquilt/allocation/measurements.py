"""KL of allocations on one text: measured once, kept in the history, counted by the meter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.history import History
from bitquilt.allocation.meter import Meter
from bitquilt.allocation.racing import EvaluateFn, by_segment
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array
from bitquilt.qtypes.qtype import Allocation

EvaluateAllocationsFn = Callable[[Sequence[Allocation], Sequence[int]], NDArray[np.float32]]
"""(allocations, windows) → KL [allocations, windows, tokens]; an :class:`.evaluator.Evaluator`, or
a pool of them, on one text."""


class Measurements:
    """KL of allocations on the windows of one text."""

    def __init__(
        self, evaluate: EvaluateAllocationsFn, windows: int, meter: Meter, history: History
    ) -> None:
        """Begin with what an earlier search wrote down.

        Args:
            evaluate: measures what is not known.
            windows: the number of windows that there are.
            meter: counts what is needed, and refuses what is too much.
            history: knows what was measured, and writes down what is new.
        """
        self.windows, self.meter, self.history = windows, meter, history
        self._evaluate = evaluate
        self._used: set[tuple[str, int]] = set()

    def of(self, space: AllocationSpace) -> EvaluateFn:
        """Return the function that measures vectors of a space."""

        def evaluate(vectors: Sequence[AllocationVector], windows: Sequence[int]) -> Float64Array:
            return self.samples([space.allocation(vector) for vector in vectors], windows)

        return evaluate

    def samples(self, allocations: Sequence[Allocation], windows: Sequence[int]) -> Float64Array:
        """Return KL [allocations, samples] at the same places of the text for all allocations.

        Raises:
            SpentError: that would go beyond the limits.
        """
        names = [_name(allocation) for allocation in allocations]
        wanted = {(name, window) for name in names for window in windows} - self._used
        missing = [
            tuple(window for window in windows if (name, window) not in self.history)
            for name in names
        ]
        self.meter.charge(len(wanted), sum(map(len, missing)))
        self._used |= wanted
        order = sorted(range(len(names)), key=lambda k: missing[k])
        for unread, group in groupby(order, key=lambda k: missing[k]):
            if unread:
                self._measure([allocations[k] for k in group], unread)
        return np.array(
            [
                np.concatenate([self.history.samples(name, window) for window in windows])
                for name in names
            ]
        )

    def _measure(self, allocations: Sequence[Allocation], windows: Sequence[int]) -> None:
        """Measure allocations and write them down."""
        with self.meter.measuring(len(allocations) * len(windows)):
            kl = by_segment(self._evaluate(allocations, windows))
            for allocation, own in zip(allocations, kl.tolist(), strict=True):
                self.history.add(_name(allocation), windows, own, self.meter.spent)


def _name(allocation: Allocation) -> str:
    """Return what a history calls an allocation: the names of its types."""
    return " ".join(allocation.values())
