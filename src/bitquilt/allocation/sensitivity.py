"""The cost of every matrix on every type: a prediction without a forward pass, or a measurement."""

from __future__ import annotations

from dataclasses import replace

from bitquilt import qtypes
from bitquilt.allocation.measurements import Measurements
from bitquilt.allocation.space import Candidate, CandidateSets
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import layer_of
from bitquilt.qtypes.qtype import Packed, PackedSource
from bitquilt.rounding.layer_bank import LayerBank
from bitquilt.runtime.progress import Progress

EXACT = "F32"
"""The type that stands for an unquantized matrix."""
ALONE_WINDOWS = 4
"""Windows that each matrix on each type is measured on, all other matrices exact."""


def block(module: str) -> str:
    """Return the number of a matrix's block, or its path where it is in none."""
    layer = layer_of(module)
    return module if layer is None else str(layer)


def prior(checkpoint: Checkpoint, sets: CandidateSets) -> CandidateSets:
    """Return candidates with costs that need no data: rounding error falls fourfold with each bit.

    They suffice to plan sizes; no quantized file is made from them.
    """
    shapes = checkpoint.matrices

    def guess(module: str, qtype: str) -> float:
        rows, columns = shapes[module]
        return float(rows * columns * 4.0 ** -qtypes.get(qtype).bits)

    return {
        module: [replace(c, predicted_kl=guess(module, c.qtype)) for c in candidates]
        for module, candidates in sets.items()
    }


def with_originals(bank: LayerBank) -> PackedSource:
    """Return a source of the bank's matrices, which gives the original ones as :data:`EXACT`."""

    def packed(module: str, qtype: str) -> Packed:
        if qtype == EXACT:
            return {"weight": bank.checkpoint.load(f"{module}.weight")}
        return bank.packed(module, qtype)

    return packed


def measured(sets: CandidateSets, measurements: Measurements, progress: Progress) -> CandidateSets:
    """Return candidates with the KL of each one alone, all other matrices exact.

    Args:
        sets: the candidates of each matrix.
        measurements: gives the KL of allocations that may hold :data:`EXACT`.
        progress: advances after each candidate.
    """
    windows = range(min(ALONE_WINDOWS, measurements.windows))
    found: dict[str, list[Candidate]] = {}
    for module, candidates in sets.items():
        alone = [dict.fromkeys(sets, EXACT) | {module: c.qtype} for c in candidates]
        kl = measurements.samples(alone, windows).mean(1)
        found[module] = [
            replace(c, predicted_kl=float(one)) for c, one in zip(candidates, kl, strict=True)
        ]
        for _ in candidates:
            progress.advance()
    return found


def predicted(bank: LayerBank, sets: CandidateSets) -> CandidateSets:
    """Return candidates with what the bank predicts (:mod:`bitquilt.calibration.prediction`)."""
    return {
        module: [replace(c, predicted_kl=scores[c.qtype]) for c in candidates]
        for module, candidates in sets.items()
        for scores in [bank.scores(module)]
    }
