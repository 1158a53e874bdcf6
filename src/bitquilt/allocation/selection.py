"""Which of a few allocations is best, on text that none of them was chosen by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.racing import Difference, by_segment
from bitquilt.allocation.space import Float64Array
from bitquilt.config import SEARCH_METHODS
from bitquilt.metrics.teacher import Teacher
from bitquilt.qtypes.qtype import Allocation
from bitquilt.runtime.progress import Progress
from bitquilt.runtime.sizes import human

FIRST_RANKED = 4
"""Windows after which allocations are ranked for the first time, and then at twice as many."""
NEAR = 0.98
"""A preset of a smaller share of the largest allocation is said to be smaller."""


@dataclass(frozen=True)
class Ranking:
    """Where one allocation stands among those that were compared."""

    name: str
    """The method that found the allocation, or the preset that it is."""
    kl: float
    """Its KL on the text that decides, in nats per token."""
    behind: Difference
    """Its KL less that of the best."""
    tokens: int
    """Tokens of that text that the KL is the mean of."""
    nbytes: int | None = None
    """What a file on it has on disk, without filling; None in a record of before this was kept."""

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Ranking:
        """Make it from what :func:`dataclasses.asdict` made of one."""
        return cls(**{**fields, "behind": Difference(**fields["behind"])})

    @property
    def versus_best(self) -> str:
        """How its KL compares with that of the best, in words."""
        if not self.behind.error:
            return "the same"
        best = self.kl - self.behind.mean
        ratio = self.kl / best if best > 0 else math.inf
        much = f"{ratio:.1f} times as much" if ratio >= 2 else f"{ratio - 1:z.1%} more"
        return much if self.behind.low > 0 else f"{much}, which may be chance"


def called(name: str) -> str:
    """Name a method or a preset within a sentence."""
    return {"race": "the race", "knapsack": "the knapsack", "evopress": "EvoPress"}.get(name, name)


def verdict(rankings: Sequence[Ranking]) -> str:
    """Say in words which allocation is used, what its KL is, and how the others compare.

    Of a preset that is much smaller it is said, since it loses by its size.

    Args:
        rankings: the allocations, best first; the largest preset that fits is among them, if any
            does.
    """
    best, *others = rankings
    largest = max(one.nbytes or 0 for one in rankings)
    said = (
        f"the types of {called(best.name)} are used: on {best.tokens:,} tokens that the search has "
    )
    said += f"not read, their selection KL is {best.kl:.3g} nats/token"
    for one in others:
        said += f"; {called(one.name)} has {one.kl:.3g}, {one.versus_best}"
        if one.nbytes is not None and one.nbytes < NEAR * largest and _is_preset(one):
            said += f", and takes {human(one.nbytes)}: no larger preset fits"
    return said if any(map(_is_preset, rankings)) else f"{said}; no preset is small enough"


def unrivalled(name: str) -> str:
    """Say in words which allocation is used where there is no other.

    Args:
        name: the method that found it.
    """
    return f"the types of {called(name)} are used: no preset is small enough to stand beside them"


def predicted_verdict(costs: Mapping[str, float]) -> str:
    """Say in words which allocation is used where none was measured.

    Args:
        costs: name → predicted KL in nats per token, of the allocation that is used, and then of
            the largest preset that fits, if any does.
    """
    (used, least), *others = costs.items()
    said = (
        f"the types of {called(used)} are used: they are predicted to cost {least:.3g} nats/token"
    )
    for name, cost in others:
        said += f", those of {called(name)} {cost:.3g}"
    return said if others else f"{said}; no preset is small enough"


def _is_preset(one: Ranking) -> bool:
    """Tell whether an allocation was not searched for."""
    return one.name not in SEARCH_METHODS


def rank(samples: Mapping[str, Float64Array], tokens: int) -> list[Ranking]:
    """Rank allocations by mean KL, best first; equals stay in their order.

    Args:
        samples: name → KL [n] at the same places of the text for all allocations.
        tokens: of that text.
    """
    ranked = sorted(samples, key=lambda name: float(samples[name].mean()))
    best = samples[ranked[0]]
    return [
        Ranking(name, float(samples[name].mean()), Difference.of(samples[name], best), tokens)
        for name in ranked
    ]


def select_best(
    named: Mapping[str, Allocation],
    evaluator: Callable[[Teacher, Sequence[Allocation], Sequence[int]], NDArray[np.float32]],
    teacher: Callable[[range], Teacher],
    windows: int,
    progress: Progress,
) -> tuple[Ranking, ...]:
    """Find the best allocation on text for that, of which no more is read than it takes.

    Args:
        named: name → allocation.
        evaluator: gives the KL of allocations on a teacher's windows.
        teacher: reads some of the windows with the original.
        windows: how many there are.
        progress: advances by the windows that were read.

    Returns:
        all of them, best first.
    """
    allocations, samples = list(named.values()), np.empty((len(named), 0))
    read = tokens = 0
    clear = False
    while read < windows and not clear:
        further = range(read, min(windows, max(2 * read, FIRST_RANKED)))
        kl = evaluator(teacher(further), allocations, range(len(further)))
        further_samples = by_segment(kl).reshape(len(allocations), -1)
        samples = np.concatenate([samples, further_samples], 1)
        read, tokens = further.stop, tokens + kl[0].size
        progress.advance(len(further))
        rankings = rank(dict(zip(named, samples, strict=True)), tokens)
        clear = all(one.behind.low > 0 or not one.behind.error for one in rankings[1:])
    return tuple(rankings)
