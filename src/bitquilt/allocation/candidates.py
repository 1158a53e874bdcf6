"""Which types each matrix may have: decided by widths, target and budget alone.

Rounding a matrix that cannot end there is wasted, so only types within reach of the budget's bits
are candidates; the reach grows until some mix comes close to the budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from bitquilt import qtypes
from bitquilt.allocation.budget import Budget
from bitquilt.allocation.knapsack import fullest_nbytes, largest_nbytes, smallest_nbytes
from bitquilt.allocation.space import Candidate, CandidateSets, sizes_of
from bitquilt.errors import UserError
from bitquilt.qtypes.qtype import QuantType
from bitquilt.targets import Target
from bitquilt.targets.layout import Layout, bits_per_weight

REACH_STEP = 0.5
"""Bits by which the reach grows where it is not enough."""
CLOSE_TO_BUDGET = 0.005
"""A file takes less than its budget by no more than this share of it, where any mix does."""
TypeBytes = Callable[[str, str], int]
"""(module path, type name) → bytes in the file, alignment included."""


class MatrixShapes(Protocol):
    """The matrices of a model: a checkpoint has them, and so does a base."""

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """Name → (rows, columns)."""

    @property
    def levels(self) -> Mapping[str, str]:
        """Name → the type on whose levels a matrix lies already, where there is one."""


def candidate_sets(
    checkpoint: MatrixShapes,
    target: Target,
    pins: Mapping[str, str],
    nbytes: TypeBytes,
    layout: Layout,
    budget: Budget,
    fast: bool = False,
    offered: Mapping[str, Collection[str]] | None = None,
) -> CandidateSets:
    """Return the candidates of every matrix with their sizes; predicted KLs are still zero.

    Args:
        checkpoint: the model.
        target: the output format.
        pins: matrices whose type is given.
        nbytes: the bytes of a matrix on a type.
        layout: says what the file has beside its matrices.
        budget: what is asked for.
        fast: whether speed matters too; no type is left out as superseded then.
        offered: matrix → types that files give it on, which are not left out as superseded.

    Raises:
        UserError: the budget is below the smallest file or above the largest.
    """
    superseded = {} if fast else target.superseded
    own_levels = {
        module: target.same_levels.get(levels) for module, levels in checkpoint.levels.items()
    }

    def staying(module: str) -> set[str | None]:
        return {own_levels.get(module), *(offered or {}).get(module, ())}

    def within(below: float, above: float) -> CandidateSets:
        return {
            module: [
                Candidate(qtype.name, nbytes(module, qtype.name), 0.0)
                for qtype in _qtypes(
                    _fitting(target, shape[1], superseded, staying(module)),
                    *(bits - below, bits + above, pins.get(module), own_levels.get(module)),
                )
            ]
            for module, shape in checkpoint.matrices.items()
        }

    capacity = budget.capacity(layout)
    bits = _free_bits(checkpoint, pins, nbytes, capacity)
    widest = sizes_of(within(math.inf, math.inf))
    least, most = smallest_nbytes(widest), largest_nbytes(widest)
    holding = "with the recipe's pins " if pins else ""
    if capacity < least:
        raise UserError(
            f"{budget} is too small: {holding}the smallest possible {target} file has "
            f"{_offered(layout, least, math.ceil)} or more"
        )
    if capacity > most:
        raise UserError(
            f"{budget} is too large: {holding}the largest possible {target} file has "
            f"{_offered(layout, most, math.floor)} or less"
        )
    enough = capacity - CLOSE_TO_BUDGET * budget.nbytes(layout.weights)
    if fullest_nbytes(widest, capacity) < enough:
        enough = 0.0  # no mix comes close, so any will do
    reach = itertools.count(0, REACH_STEP)
    below, above = target.bits_reach
    wider = (within(below + more, above + more) for more in reach)
    return next(sets for sets in wider if _fills(sets, capacity, enough))


def _free_bits(
    checkpoint: MatrixShapes, pins: Mapping[str, str], nbytes: TypeBytes, capacity: int
) -> float:
    """Bits per weight that the pinned matrices leave to the others; infinite where none is left."""
    left = capacity - sum(nbytes(module, pin) for module, pin in pins.items())
    free = sum(math.prod(shape) for m, shape in checkpoint.matrices.items() if m not in pins)
    return left * 8 / free if free else math.inf


def _fills(sets: CandidateSets, capacity: int, enough: float) -> bool:
    """Tell whether the capacity lies between the smallest and largest mix, and one is that near."""
    sizes = sizes_of(sets)
    between = smallest_nbytes(sizes) <= capacity <= largest_nbytes(sizes)
    return between and fullest_nbytes(sizes, capacity) >= enough


def _fitting(
    target: Target,
    columns: int,
    superseded: Mapping[int, frozenset[str]],
    staying: Collection[str | None],
) -> list[QuantType]:
    """Return the types that can store rows of that length, without those that are superseded.

    Args:
        target: the output format.
        columns: the length of the rows.
        superseded: divisor of row lengths → types that others make superfluous there.
        staying: types that stay: that on whose levels the matrix lies already, those offered.
    """
    fitting = qtypes.for_width(columns, target.name)
    left_out = {
        name for width, names in superseded.items() if columns % width == 0 for name in names
    } - {*staying}
    return [qtype for qtype in fitting if qtype.name not in left_out]


def _qtypes(
    fitting: list[QuantType], low: float, high: float, pin: str | None, own_levels: str | None
) -> list[QuantType]:
    if pin is not None:
        return [qtypes.get(pin)]
    # a width that few types can take still needs a choice: the nearest ones
    reach = [
        qtype
        for qtype in fitting
        if qtype.bits <= high and (low <= qtype.bits or qtype.name == own_levels)
    ]
    return reach or [min(fitting, key=lambda qtype: max(low - qtype.bits, qtype.bits - high))]


def _offered(layout: Layout, matrices: int, whole: Callable[[float], int]) -> str:
    """Say how large a file with that many bytes of matrices is, and how to ask for it.

    Args:
        layout: says what the file has beside its matrices.
        matrices: their bytes.
        whole: rounds bits to the side on which they are possible.
    """
    size = layout.fixed_bytes + matrices
    exact = bits_per_weight(layout.norm_bytes + matrices, layout.weights)
    bits = min(32.0, whole(exact * 1000) / 1000)
    return f"{size:,} bytes; ask for --size={size}B or --bits={bits:g}"
