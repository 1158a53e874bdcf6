"""The mixes of a menu as vectors of integers: for every matrix, which of its choices, by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitquilt.allocation.knapsack import Candidate, CandidateSets
from bitquilt.allocation.speed_limit import solve_with_speed_limit

AllocationVector = tuple[int, ...]
"""One number per matrix, in the order of the menu; 0 is its smallest choice."""
Float64Array = NDArray[np.float64]


class Incumbent(NamedTuple):
    """The best mix so far."""

    capacity: int
    """Bytes that its matrices may take."""
    mix: AllocationVector
    kl: float
    """On the text it was last chosen on, nats per token."""


@dataclass(frozen=True)
class AllocationSpace:
    """All mixes of one menu."""

    modules: tuple[str, ...]
    choices: tuple[tuple[Candidate, ...], ...]
    """Of each module, smallest first."""
    seconds: float = math.inf
    """That the matrices may take for a token."""

    @classmethod
    def of(cls, menu: CandidateSets, seconds: float = math.inf) -> AllocationSpace:
        """Those of a menu."""
        by_size = (tuple(sorted(own, key=lambda choice: choice.nbytes)) for own in menu.values())
        return cls(tuple(menu), tuple(by_size), seconds)

    def qtypes(self, mix: AllocationVector) -> dict[str, str]:
        """Module path → type name."""
        chosen = zip(self.modules, self.choices, mix, strict=True)
        return {module: choices[index].qtype for module, choices, index in chosen}

    def vector(self, qtypes: Mapping[str, str]) -> AllocationVector:
        """The inverse of :meth:`qtypes`; every type must be on the menu."""
        return tuple(
            [choice.qtype for choice in choices].index(qtypes[module])
            for module, choices in zip(self.modules, self.choices, strict=True)
        )

    def nbytes(self, mix: AllocationVector) -> int:
        """Bytes that the matrices take."""
        return int(sum(own[index] for own, index in zip(self.sizes, mix, strict=True)))

    def fast_enough(self, mix: AllocationVector) -> bool:
        """Whether it is within the seconds."""
        chosen = zip(self.choices, mix, strict=True)
        return sum(choices[index].seconds for choices, index in chosen) <= self.seconds

    def scaled(self, factors: Float64Array) -> AllocationSpace:
        """With the scores of each module multiplied by its factor [M]."""
        choices = tuple(
            tuple(replace(choice, divergence=choice.divergence * factor) for choice in own)
            for own, factor in zip(self.choices, factors.tolist(), strict=True)
        )
        return AllocationSpace(self.modules, choices, self.seconds)

    @cached_property
    def sizes(self) -> list[NDArray[np.int64]]:
        """Bytes of each module's choices."""
        return [np.array([choice.nbytes for choice in own]) for own in self.choices]

    @cached_property
    def scores(self) -> list[Float64Array]:
        """Predicted divergence of each module's choices, nats per token."""
        return [np.array([choice.divergence for choice in own]) for own in self.choices]

    def solve(
        self, costs: Sequence[Float64Array], capacity: int, kept: Mapping[int, int]
    ) -> AllocationVector:
        """The mix of the least sum of costs within a capacity and the seconds.

        Args:
            costs: of each module's choices.
            capacity: bytes that the matrices may take.
            kept: number of a module → its choice, for those that are not to change.
        """
        menu = {}
        for m, (module, own, cost) in enumerate(
            zip(self.modules, self.choices, costs, strict=True)
        ):
            open_to = range(len(own)) if m not in kept else [kept[m]]
            menu[module] = [replace(own[i], divergence=float(cost[i])) for i in open_to]
        return self.vector(solve_with_speed_limit(menu, capacity, self.seconds))
