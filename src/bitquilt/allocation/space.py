"""The allocations that a search may choose from, as arrays, and one of them as a vector.

Everything that changes during planning is in :data:`CandidateSets`, which goes by names. A search
asks for thousands of allocations, so it goes by numbers: :class:`AllocationSpace` holds bytes,
scores and seconds of every choice, and an :data:`AllocationVector` says which choice each matrix
has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bitquilt.qtypes.qtype import Allocation

Float64Array = NDArray[np.float64]

AllocationVector = tuple[int, ...]
"""One number per matrix, in the order of the space: which of its choices it has, 0 the smallest."""


@dataclass(frozen=True)
class Candidate:
    """A type that one matrix may have."""

    qtype: str
    nbytes: int
    """Bytes of the matrix in the file, alignment included."""
    predicted_kl: float
    """The KL that this matrix on this type is predicted to cost, in nats per token."""
    seconds: float = 0.0
    """Predicted time that this matrix takes for a generated token."""


CandidateSets = Mapping[str, list[Candidate]]
"""Module path → the candidates of that matrix: the classes of the multiple-choice knapsack."""


def sizes_of(candidate_sets: CandidateSets) -> list[list[int]]:
    """Return the bytes of each matrix's candidates, in the order of the sets."""
    return [[candidate.nbytes for candidate in own] for own in candidate_sets.values()]


class Incumbent(NamedTuple):
    """The best allocation that a search has found so far."""

    capacity: int
    """Bytes that the matrices of this allocation may take."""
    vector: AllocationVector
    kl: float
    """Its KL on the text that it was last chosen on, in nats per token."""
    before: float
    """The KL of the best allocation before it, on the same text; its own where that is itself."""
    rivals: int | None = None
    """How many others its race has left that may yet be better, 0 where the search is settled; None
    where a search cannot tell."""


@dataclass(frozen=True, kw_only=True)
class AllocationSpace:
    """All allocations that candidate sets allow. The choices of a matrix go by size."""

    modules: tuple[str, ...]
    qtypes: tuple[tuple[str, ...], ...]
    """The types of each module's choices."""
    sizes: tuple[tuple[int, ...], ...]
    """The bytes of each module's choices."""
    scores: tuple[Float64Array, ...]
    """The predicted KL of each module's choices, in nats per token."""
    seconds: tuple[Float64Array, ...]
    """The predicted seconds per token of each module's choices."""
    max_seconds: float = math.inf
    """Seconds that all matrices together may take for a token."""

    @classmethod
    def of(cls, candidate_sets: CandidateSets, max_seconds: float = math.inf) -> AllocationSpace:
        """Sort the candidates of each matrix by size and put them into arrays."""
        by_size = [sorted(own, key=lambda c: c.nbytes) for own in candidate_sets.values()]
        return cls(
            modules=tuple(candidate_sets),
            qtypes=tuple(tuple(c.qtype for c in own) for own in by_size),
            sizes=tuple(tuple(c.nbytes for c in own) for own in by_size),
            scores=tuple(np.array([c.predicted_kl for c in own]) for own in by_size),
            seconds=tuple(np.array([c.seconds for c in own]) for own in by_size),
            max_seconds=max_seconds,
        )

    def allocation(self, vector: AllocationVector) -> dict[str, str]:
        """Return module path → type name."""
        chosen = zip(self.modules, self.qtypes, vector, strict=True)
        return {module: qtypes[index] for module, qtypes, index in chosen}

    def vector(self, allocation: Allocation) -> AllocationVector:
        """Return the inverse of :meth:`allocation`.

        Raises:
            ValueError: a type of the allocation is not among the candidates.
        """
        vector = []
        for module, qtypes in zip(self.modules, self.qtypes, strict=True):
            if allocation[module] not in qtypes:
                raise ValueError(f"{allocation[module]} is not a candidate of {module}")
            vector.append(qtypes.index(allocation[module]))
        return tuple(vector)

    def nbytes(self, vector: AllocationVector) -> int:
        """Return the bytes that the matrices take."""
        return sum(own[index] for own, index in zip(self.sizes, vector, strict=True))

    def fast_enough(self, vector: AllocationVector) -> bool:
        """Tell whether the matrices stay within the seconds of the space."""
        return chosen_sum(self.seconds, vector) <= self.max_seconds

    def scaled(self, factors: Float64Array) -> AllocationSpace:
        """Return the space with the scores of each module multiplied by its factor [M]."""
        pairs = zip(self.scores, factors.tolist(), strict=True)
        return self.rescored([own * factor for own, factor in pairs])

    def rescored(self, scores: Sequence[Float64Array]) -> AllocationSpace:
        """Return the space with other scores."""
        return replace(self, scores=tuple(scores))

    def restricted(self, kept: Mapping[int, int]) -> AllocationSpace:
        """Return the space in which some modules have one choice only.

        Args:
            kept: index of a module → index of the one choice that it keeps.
        """
        choices = [
            slice(kept[m], kept[m] + 1) if m in kept else slice(None)
            for m in range(len(self.modules))
        ]
        return replace(
            self,
            qtypes=tuple(own[c] for own, c in zip(self.qtypes, choices, strict=True)),
            sizes=tuple(own[c] for own, c in zip(self.sizes, choices, strict=True)),
            scores=tuple(own[c] for own, c in zip(self.scores, choices, strict=True)),
            seconds=tuple(own[c] for own, c in zip(self.seconds, choices, strict=True)),
        )


def chosen_sum(values: Sequence[Float64Array], vector: AllocationVector) -> float:
    """Return the sum over all matrices of the value that each one's choice has."""
    return float(sum(own[index] for own, index in zip(values, vector, strict=True)))
