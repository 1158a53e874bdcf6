"""What a budget does to a model, in sentences: what the weights get of it, and what more would do.

The front of a model is the least predicted KL at each size, from the exact knapsack. Rounding error
falls fourfold with each bit, so over most of the front KL halves twice per bit. Near the types of
the fewest bits it falls faster; the knee is where that ends. docs/decisions/knee.md has the fronts
that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

from bitquilt.allocation.knapsack import KnapsackTable, largest_nbytes
from bitquilt.allocation.space import AllocationSpace, chosen_sum
from bitquilt.errors import UserError
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.sizes import human
from bitquilt.targets import TARGETS, Target
from bitquilt.targets.layout import Layout, bits_per_weight

LARGE_OVERHEAD = 0.05
"""The share of a budget from which on it is said what tokenizer and metadata take."""
STEP_BITS = 0.25
"""Bits per weight between two points of a front."""
STEPS = 6
"""How many steps above a budget its front is looked at."""
STEEP = 3.0
"""Halvings of the KL per bit of which a front has more below its knee."""


def overhead_note(checkpoint: Checkpoint, size: int, target: Target) -> str:
    """Say what each format's tokenizer and metadata leave of a size to the weights.

    Args:
        checkpoint: the model.
        size: bytes of everything on disk.
        target: the format that is asked for.

    Returns:
        A sentence; an empty one where they take little in that format.
    """
    layouts: dict[str, Layout] = {}
    for each in TARGETS.values():
        with suppress(UserError):  # the model may have no form in another format
            layouts[each.name] = each.plan(checkpoint, dict.fromkeys(checkpoint.matrices, "BF16"))
    overheads = {name: one.fixed_bytes - one.norm_bytes for name, one in layouts.items()}
    if overheads[target.name] < LARGE_OVERHEAD * size:
        return ""
    left = {
        name: bits_per_weight(size - overhead, checkpoint.weights)
        for name, overhead in overheads.items()
    }
    taken = " and ".join(f"{human(nbytes)} in {name}" for name, nbytes in overheads.items())
    bits = " and ".join(f"{bits:.2f} bits in {name}" for name, bits in left.items())
    return (
        f"of {human(size)}, the tokenizer and metadata take {taken}; that leaves the weights {bits}"
    )


class FrontMix(NamedTuple):
    """The mix of the least predicted KL at a capacity."""

    kl: float
    """Its predicted KL, in nats per token."""
    nbytes: int
    """What its matrices take, which may be less than they may."""


def front(space: AllocationSpace, capacity: int, step: int) -> list[FrontMix]:
    """Return the best mix at a capacity, a step above it, two steps …

    Args:
        space: what may be chosen, scored. A limit of speed is not regarded.
        capacity: bytes of the matrices, of the first point.
        step: bytes between two points; there are :data:`STEPS` above the first, or as many as
            the space reaches.
    """
    most = largest_nbytes(space.sizes)
    capacities = [capacity + n * step for n in range(STEPS + 1) if capacity + n * step <= most]
    table = KnapsackTable(space.scores, space.sizes, capacities[-1])
    chosen = [table.solve(each) for each in capacities]
    return [FrontMix(chosen_sum(space.scores, one), space.nbytes(one)) for one in chosen]


def knee(kls: Sequence[float], step_bits: float = STEP_BITS) -> int:
    """Return how many steps above its first point a front ceases to be steep.

    Args:
        kls: the KL at points of equal steps.
        step_bits: bits per weight of a step.

    Returns:
        0 where it is not steep at all; the last point where it is steep all the way.
    """
    for n, (here, then) in enumerate(pairwise(kls)):
        if here <= then * 2 ** (STEEP * step_bits):
            return n
    return len(kls) - 1


def knee_note(space: AllocationSpace, capacity: int, layout: Layout) -> str:
    """Say it where a budget is below the knee, and what a larger one would do.

    Args:
        space: what may be chosen, with real scores.
        capacity: bytes that the budget leaves to the matrices.
        layout: says what the file has beside its matrices.

    Returns:
        A sentence; an empty one where the budget is not below the knee.
    """
    step = int(STEP_BITS * layout.weights / 8)
    if not math.isinf(space.max_seconds) or capacity + step > largest_nbytes(space.sizes):
        return ""
    mixes = front(space, capacity, step)
    kls = [mix.kl for mix in mixes]
    if (steps := knee(kls)) == 0:
        return ""
    bits, more_bits = (
        bits_per_weight(layout.norm_bytes + mix.nbytes, layout.weights)
        for mix in (mixes[0], mixes[steps])
    )
    halving = STEP_BITS / math.log2(kls[0] / kls[1])
    more = layout.fixed_bytes + mixes[steps].nbytes
    return (
        f"{bits:.2f} bits are below the knee of the curve of KL against size: every {halving:.2f} "
        f"bits more halve the predicted KL; at {more_bits:.2f} bits ({human(more)} on "
        f"disk) it is {kls[steps]:.2g} instead of {kls[0]:.2g} nats/token"
    )
