"""Racing: allocations read the same text, and those that are clearly beaten read no more of it.

All differences are paired, at the same places of the text: two allocations find the same tokens
hard, so their difference is known many times better than either figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.space import AllocationVector, Float64Array

EvaluateFn = Callable[[Sequence[AllocationVector], Sequence[int]], Float64Array]
"""(allocations, windows) → KL samples [allocations, samples], at the same places of the text for
all allocations."""

CLEARLY = 2.0
"""Standard errors of the paired difference by which an allocation is clearly beaten."""
SEGMENT = 64
"""Tokens whose mean KL is one sample: neighbouring tokens are not independent."""


@dataclass(frozen=True)
class Difference:
    """The mean paired difference of two allocations, a minus b, and its standard error, in nats per
    token.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, a: Float64Array, b: Float64Array) -> Difference:
        """Compare samples [n] at the same places of a text."""
        difference = a - b
        spread = difference.std(ddof=1) if len(difference) > 1 else np.inf
        return cls(float(difference.mean()), float(spread / np.sqrt(len(difference))))

    @property
    def low(self) -> float:
        """The least that the difference can well be."""
        return self.mean - CLEARLY * self.error

    @property
    def high(self) -> float:
        """The most that the difference can well be."""
        return self.mean + CLEARLY * self.error


def by_segment(kl: NDArray[np.float32]) -> Float64Array:
    """Average the KL of single tokens [allocations, windows, tokens] over segments.

    Returns:
        [allocations, windows, segments].
    """
    parts = np.array_split(kl, max(1, round(kl.shape[2] / SEGMENT)), axis=2)
    return np.stack([part.mean(2, dtype=np.float64) for part in parts], axis=2)


def contenders(samples: Float64Array) -> list[int]:
    """Return the allocations that the best one does not clearly beat, best first.

    Args:
        samples: KL [allocations, samples], at the same places of the text for all allocations.
    """
    order = [int(k) for k in np.argsort(samples.mean(1), kind="stable")]
    leader = samples[order[0]]
    return [k for k in order if k == order[0] or Difference.of(samples[k], leader).low <= 0]


def race(
    incumbent: AllocationVector,
    challengers: Sequence[AllocationVector],
    evaluate: EvaluateFn,
    rungs: Sequence[Sequence[int]],
) -> dict[AllocationVector, Float64Array]:
    """Let allocations read rung after rung until one is left or there are no more rungs.

    Args:
        incumbent: the best allocation so far, which stays to the end.
        challengers: the allocations that would replace it.
        evaluate: gives the KL of allocations.
        rungs: the windows that each rung adds.

    Returns:
        The samples [n] of those that were still running, the winner first.
    """
    running, read = list(dict.fromkeys([incumbent, *challengers])), list[int]()
    for rung in rungs:
        read = list(dict.fromkeys([*read, *rung]))
        samples = evaluate(running, read)
        places = contenders(samples)
        finished = {running[k]: samples[k] for k in places}
        if incumbent not in finished:
            finished[incumbent] = samples[running.index(incumbent)]
        running = list(finished)
        if len(running) == 1:
            break
    return finished
