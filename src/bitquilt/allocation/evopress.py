"""EvoPress: evolution by random level swaps, the baseline that our search is compared with.

After Sieberling, Kuznedelev, Kurtic and Alistarh, "EvoPress: Accurate Dynamic Model Compression via
Evolutionary Search" (ICML 2025), as run on a bank of GGUF types by IST-DASLab/gptq-gguf-toolkit. A
generation is 128 offspring of one parent, each after min(U(1, 3), U(1, 3)) swaps; they are selected
on 2,048, 16,384 and 131,072 tokens drawn anew each time, 16, 4 and 1 surviving; the parent takes
part in the last stage. The first parent is the best of 128 random mixes on 2,048 tokens.

A swap lowers one matrix by a level and raises another of the same size. Levels are real types with
unequal steps and the budget is exact here, so a raise must fit, and what is left of the budget is
spent on random raises of others; without that EvoPress would be judged on smaller files.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitquilt.allocation.racing import EvaluateFn
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Incumbent

MOST_SWAPS = 3
DUPLICATES = 10
"""Offspring that were there already, one after another, after which a generation is complete."""


@dataclass(frozen=True)
class Schedule:
    """How much is tried."""

    generations: int = 50
    offspring: int = 128
    tokens: tuple[int, ...] = (2048, 16384, 131072)
    """Of each stage of selection."""
    survivors: tuple[int, ...] = (16, 4, 1)


def evolve(
    mixes: AllocationSpace,
    capacity: int,
    measure: EvaluateFn,
    text: tuple[int, int],
    schedule: Schedule,
    rng: np.random.Generator,
) -> Iterator[Incumbent]:
    """The parent of each generation, the last one being the result.

    Args:
        mixes: what may be chosen.
        capacity: bytes that the matrices may take.
        measure: gives the KL of mixes.
        text: the windows that there are, and the tokens of each.
        schedule: how much is tried.
        rng: decides swaps and windows.
    """

    def select(
        candidates: Sequence[AllocationVector], tokens: int, survivors: int
    ) -> list[tuple[AllocationVector, float]]:
        windows, length = text
        drawn = rng.permutation(windows)[: max(1, tokens // length)].tolist()
        divergence = measure(candidates, drawn).mean(1)
        order = np.argsort(divergence, kind="stable")[:survivors]
        return [(candidates[i], float(divergence[i])) for i in order]

    first = [random_mix(mixes, capacity, rng) for _ in range(schedule.offspring)]
    ((parent, kl),) = select(first, schedule.tokens[0], 1)
    yield Incumbent(capacity, parent, kl)
    for _ in range(schedule.generations):
        candidates = _offspring(mixes, parent, capacity, schedule.offspring, rng)
        if not candidates:
            return  # pins leave nothing to swap
        *early, last = zip(schedule.tokens, schedule.survivors, strict=True)
        for stage in early:
            candidates = [mix for mix, _ in select(candidates, *stage)]
        ((parent, kl),) = select([*dict.fromkeys([*candidates, parent])], *last)
        yield Incumbent(capacity, parent, kl)


def random_mix(mixes: AllocationSpace, capacity: int, rng: np.random.Generator) -> AllocationVector:
    """The same level for all, the first that is too large; random ones lowered until it fits."""
    tops = [len(choices) - 1 for choices in mixes.choices]
    uniform = ([min(level, top) for top in tops] for level in range(max(tops) + 1))
    levels = next((u for u in uniform if mixes.nbytes(tuple(u)) > capacity), tops)
    while mixes.nbytes(tuple(levels)) > capacity:
        levels[rng.choice(_lowerable(levels))] -= 1
    return _filled(mixes, levels, capacity, set(), rng)


def _lowerable(levels: Sequence[int]) -> list[int]:
    return [m for m, level in enumerate(levels) if level > 0]


def _offspring(
    mixes: AllocationSpace,
    parent: AllocationVector,
    capacity: int,
    count: int,
    rng: np.random.Generator,
) -> list[AllocationVector]:
    """Different children, none of them the parent."""
    found: list[AllocationVector] = []
    duplicates = 0
    while len(found) < count and duplicates < DUPLICATES:
        child = swapped(mixes, parent, capacity, rng)
        if child == parent or child in found:
            duplicates += 1
        else:
            duplicates = 0
            found.append(child)
    return found


def swapped(
    mixes: AllocationSpace, parent: AllocationVector, capacity: int, rng: np.random.Generator
) -> AllocationVector:
    """A child after one to three level swaps, within the capacity."""
    levels, lowered = list(parent), set[int]()
    for _ in range(min(rng.integers(1, MOST_SWAPS + 1), rng.integers(1, MOST_SWAPS + 1))):
        if not (lowerable := _lowerable(levels)):
            break
        one = int(rng.choice(lowerable))
        levels[one] -= 1
        lowered.add(one)
        size = mixes.sizes[one][0]
        raisable = _raisable(mixes, levels, capacity, lowered)
        if peers := [m for m in raisable if mixes.sizes[m][0] == size]:
            levels[rng.choice(peers)] += 1
    return _filled(mixes, levels, capacity, lowered, rng)


def _filled(
    mixes: AllocationSpace,
    levels: list[int],
    capacity: int,
    closed: set[int],
    rng: np.random.Generator,
) -> AllocationVector:
    """Raise random matrices, but for the closed ones, until no more fits."""
    while raisable := _raisable(mixes, levels, capacity, closed):
        levels[rng.choice(raisable)] += 1
    return tuple(levels)


def _raisable(
    mixes: AllocationSpace, levels: Sequence[int], capacity: int, closed: Container[int]
) -> list[int]:
    """Matrices, but for the closed ones, that fit one level higher."""
    room = capacity - mixes.nbytes(tuple(levels))
    return [
        m
        for m, (level, sizes) in enumerate(zip(levels, mixes.sizes, strict=True))
        if m not in closed and level + 1 < len(sizes) and sizes[level + 1] - sizes[level] <= room
    ]
