"""Which grids each matrix may be put on: decided by widths, target and budget alone.

Rounding a matrix that cannot end there is wasted, so only grids within reach of the budget's bits
are candidates; the reach grows until the budget lies between the smallest and the largest mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bitquilt import grids
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.errors import UserError
from bitquilt.grids.grid import Grid
from bitquilt.search.budget import human
from bitquilt.search.knapsack import Choice, Menu, largest, smallest

BELOW, ABOVE = 1.6, 2.2
"""Bits below and above the budget's that a matrix may take."""
STEP = 0.5
SUPERSEDED = {
    "gguf": {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"},
    "mlx": {"mxfp4"},
}
"""Grids that another of the same cost beats wherever it fits: 256-blocks beat 32-blocks, and
4bit-g64 beats mxfp4."""
CellBytes = Callable[[str, str], int]
"""(module path, grid name) → bytes in the file, alignment included."""


def menu(
    checkpoint: Checkpoint,
    target: str,
    pins: Mapping[str, str],
    nbytes: CellBytes,
    capacity: int,
) -> Menu:
    """The candidates of every matrix with their sizes; divergences are still zero.

    Args:
        checkpoint: the model.
        target: ``gguf`` or ``mlx``.
        pins: matrices whose grid is given.
        nbytes: the cost of a cell.
        capacity: bytes that the matrices may take together.

    Raises:
        UserError: the budget is below the smallest or above the largest mix.
    """

    def within(below: float, above: float) -> Menu:
        return {
            module: [
                Choice(grid.name, nbytes(module, grid.name), 0.0)
                for grid in _grids(target, shape[1], bits - below, bits + above, pins.get(module))
            ]
            for module, shape in checkpoint.matrices.items()
        }

    weights = sum(rows * columns for rows, columns in checkpoint.matrices.values())
    bits = capacity * 8 / weights
    widest = within(64, 64)
    if not smallest(widest) <= capacity <= largest(widest):
        raise _out_of_range(widest, capacity)
    below, above = BELOW, ABOVE
    while smallest(within(below, above)) > capacity:
        below += STEP
    while largest(within(below, above)) < capacity:
        above += STEP
    return within(below, above)


def _grids(target: str, columns: int, low: float, high: float, pin: str | None) -> list[Grid]:
    if pin is not None:
        return [grids.get(pin)]
    fitting = grids.for_width(columns, target)
    if target == "mlx" or columns % 256 == 0:
        fitting = [grid for grid in fitting if grid.name not in SUPERSEDED[target]]
    # a width that few grids can take still needs a choice: the nearest ones
    reach = [grid for grid in fitting if low <= grid.bits <= high]
    return reach or [min(fitting, key=lambda grid: max(low - grid.bits, grid.bits - high))]


def _out_of_range(widest: Menu, capacity: int) -> UserError:
    least, most = smallest(widest), largest(widest)
    if capacity < least:
        return UserError(
            f"the budget leaves {human(max(capacity, 0))} ({max(capacity, 0):,} bytes) for the "
            f"matrices and the smallest mix takes {human(least)} ({least:,} bytes)"
        )
    return UserError(
        f"the budget leaves {human(capacity)} ({capacity:,} bytes) for the matrices and the "
        f"largest mix, all in F32, takes {human(most)} ({most:,} bytes)"
    )
