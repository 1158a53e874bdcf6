"""EvoPress: evolution by random level swaps, the baseline that our search is compared with.

After Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress: Accurate Dynamic Model Compression via
Evolutionary Search" (ICML 2025), as run on a bank of GGUF types by IST-DASLab/gptq-gguf-toolkit. A
generation is 128 offspring of one parent (:mod:`.moves`). They are selected on 2,048, 16,384 and
131,072 tokens drawn anew each time, 16, 4 and 1 surviving; the parent takes part in the last stage.
The first parent is the best of 128 random allocations on 2,048 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitquilt.allocation.moves import level_swaps, random_vector
from bitquilt.allocation.racing import EvaluateFn
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Incumbent

DUPLICATES = 10
"""A generation is complete after so many offspring in a row that were there already."""


@dataclass(frozen=True)
class EvoPressSchedule:
    """How much EvoPress tries. The defaults are those of its authors."""

    generations: int = 50
    offspring: int = 128
    tokens: tuple[int, ...] = (2048, 16384, 131072)
    """Tokens that each stage of selection reads."""
    survivors: tuple[int, ...] = (16, 4, 1)
    """Offspring that each stage of selection keeps."""

    @property
    def token_forwards(self) -> int:
        """The tokens that are read in all, each offspring's counted: its authors' 59 million."""
        reading = (self.offspring, *(count + 1 for count in self.survivors[:-1]))
        generation = sum(a * b for a, b in zip(reading, self.tokens, strict=True))
        return self.offspring * self.tokens[0] + self.generations * generation


def evolve(
    space: AllocationSpace,
    capacity: int,
    evaluate: EvaluateFn,
    text: tuple[int, int],
    schedule: EvoPressSchedule,
    rng: np.random.Generator,
) -> Iterator[Incumbent]:
    """Yield the parent of each generation; the last one is the result.

    Args:
        space: what may be chosen.
        capacity: bytes that the matrices may take.
        evaluate: gives the KL of allocations.
        text: the number of windows, and the tokens of each.
        schedule: how much is tried.
        rng: decides swaps and windows.
    """

    def select(
        candidates: Sequence[AllocationVector], tokens: int, survivors: int
    ) -> list[tuple[AllocationVector, float]]:
        windows, length = text
        drawn = rng.permutation(windows)[: max(1, tokens // length)].tolist()
        kl = evaluate(candidates, drawn).mean(1)
        order = np.argsort(kl, kind="stable")[:survivors]
        return [(candidates[i], float(kl[i])) for i in order]

    first = [random_vector(space, capacity, rng) for _ in range(schedule.offspring)]
    ((parent, kl),) = select(first, schedule.tokens[0], 1)
    yield Incumbent(capacity, parent, kl, before=kl)
    for _ in range(schedule.generations):
        candidates = _offspring(space, parent, capacity, schedule.offspring, rng)
        if not candidates:
            return  # pins leave nothing to swap
        *early, last = zip(schedule.tokens, schedule.survivors, strict=True)
        for stage in early:
            candidates = [vector for vector, _ in select(candidates, *stage)]
        finalists = [*dict.fromkeys([*candidates, parent])]
        ranked = select(finalists, last[0], len(finalists))
        before = dict(ranked)[parent]
        parent, kl = ranked[0]
        yield Incumbent(capacity, parent, kl, before)


def _offspring(
    space: AllocationSpace,
    parent: AllocationVector,
    capacity: int,
    count: int,
    rng: np.random.Generator,
) -> list[AllocationVector]:
    """Different children, none of them the parent."""
    found: list[AllocationVector] = []
    duplicates = 0
    while len(found) < count and duplicates < DUPLICATES:
        child = level_swaps(space, parent, capacity, rng)
        if child == parent or child in found:
            duplicates += 1
        else:
            duplicates = 0
            found.append(child)
    return found
