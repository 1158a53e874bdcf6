"""Which of a few allocations is best, on text that none of them was chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.racing import CLEARLY, Difference, by_segment
from bitquilt.allocation.space import Float64Array
from bitquilt.metrics.teacher import Teacher
from bitquilt.qtypes.qtype import Allocation

FIRST_RANKED = 4
"""Windows after which allocations are ranked for the first time, and then at twice as many."""


@dataclass(frozen=True)
class Ranking:
    """Where one allocation stands among those that were compared."""

    name: str
    """The method that found the allocation, or the preset that it is."""
    kl: float
    """Its KL on the text that decides, in nats per token."""
    behind: Difference
    """Its KL less that of the best."""

    def __str__(self) -> str:
        if not self.behind.error:
            return f"{self.name} {self.kl:.4g}"
        best = self.kl - self.behind.mean
        more, error = (100 * x / best for x in (self.behind.mean, CLEARLY * self.behind.error))
        return f"{self.name} {self.kl:.4g} ({more:.1f} ± {error:.1f} % behind)"


def rank(samples: Mapping[str, Float64Array]) -> list[Ranking]:
    """Rank allocations by mean KL, best first; equals stay in their order.

    Args:
        samples: name → KL [n] at the same places of the text for all allocations.
    """
    ranked = sorted(samples, key=lambda name: float(samples[name].mean()))
    best = samples[ranked[0]]
    return [
        Ranking(name, float(samples[name].mean()), Difference.of(samples[name], best))
        for name in ranked
    ]


def select_on_heldout(
    named: Mapping[str, Allocation],
    evaluator: Callable[[Teacher, Sequence[Allocation], Sequence[int]], NDArray[np.float32]],
    teacher: Callable[[range], Teacher],
    windows: int,
) -> tuple[str, tuple[Ranking, ...]]:
    """Find the best allocation on held-out text, of which no more is read than it takes.

    Args:
        named: name → allocation.
        evaluator: gives the KL of allocations on a teacher's windows.
        teacher: reads some of the windows with the original.
        windows: how many there are.

    Returns:
        the name of the best, and all of them ranked.
    """
    allocations, samples = list(named.values()), np.empty((len(named), 0))
    read = 0
    clear = False
    while read < windows and not clear:
        further = range(read, min(windows, max(2 * read, FIRST_RANKED)))
        kl = by_segment(evaluator(teacher(further), allocations, range(len(further))))
        samples = np.concatenate([samples, kl.reshape(len(allocations), -1)], 1)
        read = further.stop
        rankings = rank(dict(zip(named, samples, strict=True)))
        clear = all(one.behind.low > 0 or not one.behind.error for one in rankings[1:])
    return rankings[0].name, tuple(rankings)
