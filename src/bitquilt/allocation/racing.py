"""Racing: mixes read the same text, and those that are clearly beaten read no more of it.

All differences are paired, at the same places of the text: two mixes find the same tokens hard, so
their difference is known many times better than either figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.space import AllocationVector, Float64Array

EvaluateFn = Callable[[Sequence[AllocationVector], Sequence[int]], Float64Array]
"""(mixes, windows) → KL samples [mixes, samples], at the same places of the text for all mixes."""

CLEARLY = 2.0
"""Standard errors of the paired difference by which a mix is clearly beaten."""
SEGMENT = 64
"""Tokens whose mean KL is one sample: neighbouring tokens are not independent."""


@dataclass(frozen=True)
class Difference:
    """Mean paired difference of two mixes, a minus b, and its standard error; nats per token."""

    mean: float
    error: float

    @classmethod
    def of(cls, a: Float64Array, b: Float64Array) -> Difference:
        """From samples [n] at the same places of a text."""
        difference = a - b
        spread = difference.std(ddof=1) if len(difference) > 1 else np.inf
        return cls(float(difference.mean()), float(spread / np.sqrt(len(difference))))

    @property
    def low(self) -> float:
        """The least that it can well be."""
        return self.mean - CLEARLY * self.error

    @property
    def high(self) -> float:
        """The most that it can well be."""
        return self.mean + CLEARLY * self.error


def by_segment(kl: NDArray[np.float32]) -> Float64Array:
    """KL of single tokens [mixes, windows, tokens] → of segments [mixes, windows, segments]."""
    parts = np.array_split(kl, max(1, round(kl.shape[2] / SEGMENT)), axis=2)
    return np.stack([part.mean(2, dtype=np.float64) for part in parts], axis=2)


def contenders(samples: Float64Array) -> list[int]:
    """The mixes that the best one does not clearly beat, best first.

    Args:
        samples: KL [mixes, samples], at the same places of the text for all mixes.
    """
    order = [int(k) for k in np.argsort(samples.mean(1), kind="stable")]
    leader = samples[order[0]]
    return [k for k in order if k == order[0] or Difference.of(samples[k], leader).low <= 0]


def race(
    best: AllocationVector,
    others: Sequence[AllocationVector],
    measure: EvaluateFn,
    heats: Sequence[Sequence[int]],
) -> dict[AllocationVector, Float64Array]:
    """Let mixes read heat after heat until one is left or there are no more.

    Args:
        best: the best mix so far, which stays to the end.
        others: the mixes that would replace it.
        measure: gives the KL of mixes.
        heats: the windows of each heat.

    Returns:
        Samples [n] of those that were still running, the winner first.
    """
    running, read = list(dict.fromkeys([best, *others])), list[int]()
    for heat in heats:
        read = list(dict.fromkeys([*read, *heat]))
        samples = measure(running, read)
        places = contenders(samples)
        finished = {running[k]: samples[k] for k in places}
        if best not in finished:
            finished[best] = samples[running.index(best)]
        running = list(finished)
        if len(running) == 1:
            break
    return finished
