"""Random steps in a space of allocations: level swaps, as EvoPress makes them.

A level is the index of a matrix's choice, by size. A swap lowers one matrix by a level and raises
another of the same size. Levels are real types with unequal steps and the budget is exact here, so
a raise must fit, and what is left of the budget is spent on random raises of others; without that
EvoPress would be judged on smaller files.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from bitquilt.allocation.space import AllocationSpace, AllocationVector

MOST_SWAPS = 3
"""The most level swaps between a parent and its child."""


def random_vector(
    space: AllocationSpace, capacity: int, rng: np.random.Generator
) -> AllocationVector:
    """Return a random allocation near a uniform one.

    It starts from the first level that is too large for all, and lowers random matrices until the
    allocation fits.

    Args:
        space: what may be chosen.
        capacity: bytes that the matrices may take.
        rng: decides which matrices are lowered and raised.
    """
    tops = [len(own) - 1 for own in space.sizes]
    uniform = ([min(level, top) for top in tops] for level in range(max(tops) + 1))
    levels = next((u for u in uniform if space.nbytes(tuple(u)) > capacity), tops)
    while space.nbytes(tuple(levels)) > capacity:
        levels[rng.choice(_lowerable(levels))] -= 1
    return _filled(space, levels, capacity, set(), rng)


def level_swaps(
    space: AllocationSpace, parent: AllocationVector, capacity: int, rng: np.random.Generator
) -> AllocationVector:
    """Return a child after min(U(1, 3), U(1, 3)) level swaps, within the capacity.

    Args:
        space: what may be chosen.
        parent: where the swaps start.
        capacity: bytes that the matrices may take.
        rng: decides how many swaps there are, and of which matrices.
    """
    levels, lowered = list(parent), set[int]()
    for _ in range(min(rng.integers(1, MOST_SWAPS + 1), rng.integers(1, MOST_SWAPS + 1))):
        if not (lowerable := _lowerable(levels)):
            break
        down = int(rng.choice(lowerable))
        levels[down] -= 1
        lowered.add(down)
        raisable = _raisable(space, levels, capacity, lowered)
        if peers := [m for m in raisable if space.sizes[m][0] == space.sizes[down][0]]:
            levels[rng.choice(peers)] += 1
    return _filled(space, levels, capacity, lowered, rng)


def _lowerable(levels: Sequence[int]) -> list[int]:
    return [m for m, level in enumerate(levels) if level > 0]


def _filled(
    space: AllocationSpace,
    levels: list[int],
    capacity: int,
    closed: set[int],
    rng: np.random.Generator,
) -> AllocationVector:
    """Raise random matrices, but for the closed ones, until no more fits."""
    while raisable := _raisable(space, levels, capacity, closed):
        levels[rng.choice(raisable)] += 1
    return tuple(levels)


def _raisable(
    space: AllocationSpace, levels: Sequence[int], capacity: int, closed: Container[int]
) -> list[int]:
    """List the matrices, but for the closed ones, that fit one level higher."""
    room = capacity - space.nbytes(tuple(levels))
    return [
        m
        for m, (level, sizes) in enumerate(zip(levels, space.sizes, strict=True))
        if m not in closed and level + 1 < len(sizes) and sizes[level + 1] - sizes[level] <= room
    ]
