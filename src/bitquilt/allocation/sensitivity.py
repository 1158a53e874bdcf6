"""The cost of every (matrix, type): a prediction that takes no forward, or a measurement."""

from __future__ import annotations

from dataclasses import replace

from bitquilt import qtypes
from bitquilt.allocation.knapsack import Candidate, CandidateSets
from bitquilt.allocation.measurements import Measurements
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.qtype import Packed, PackedSource
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.runtime.progress import Progress

EXACT = "F32"
"""The type of a matrix that is as it was."""
ALONE = 4
"""Windows that each cell is measured on where no prediction is trusted."""


def block(module: str) -> str:
    """The number of its block; the path of a matrix that is in none."""
    layer = layer_of(module)
    return module if layer is None else str(layer)


def prior(checkpoint: Checkpoint, menu: CandidateSets) -> CandidateSets:
    """Costs before anything is measured: rounding error falls fourfold a bit.

    Enough to plan sizes with; never what a quantized file is made from.
    """
    shapes = checkpoint.matrices

    def guess(module: str, qtype: str) -> float:
        rows, columns = shapes[module]
        return float(rows * columns * 4.0 ** -qtypes.get(qtype).bits)

    return {
        module: [replace(choice, divergence=guess(module, choice.qtype)) for choice in choices]
        for module, choices in menu.items()
    }


def with_originals(bank: LayerBank) -> PackedSource:
    """The bank's matrices, and as :data:`EXACT` the original ones."""

    def packed(module: str, qtype: str) -> Packed:
        if qtype == EXACT:
            return {"weight": bank.checkpoint.load(f"{module}.weight")}
        return bank.packed(module, qtype)

    return packed


def measured(menu: CandidateSets, measurements: Measurements, progress: Progress) -> CandidateSets:
    """The menu with each cell's measured divergence, all other matrices exact.

    Args:
        menu: what each matrix may be put on.
        measurements: of mixes that may hold :data:`EXACT`.
        progress: advances after each cell.
    """
    windows = range(min(ALONE, measurements.windows))
    found: dict[str, list[Candidate]] = {}
    for module, choices in menu.items():
        alone = [dict.fromkeys(menu, EXACT) | {module: choice.qtype} for choice in choices]
        kl = measurements.samples(alone, windows).mean(1)
        found[module] = [
            replace(c, divergence=float(one)) for c, one in zip(choices, kl, strict=True)
        ]
        for _ in choices:
            progress.advance()
    return found


def predicted(bank: LayerBank, menu: CandidateSets) -> CandidateSets:
    """The menu with each cell's predicted divergence (:mod:`bitquilt.calibration.prediction`)."""
    return {
        module: [replace(c, divergence=cells[c.qtype].divergence) for c in choices]
        for module, choices in menu.items()
        for cells in [bank.cells(module)]
    }
