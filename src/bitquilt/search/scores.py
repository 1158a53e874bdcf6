"""The cost of every (matrix, grid): predicted divergence, scaled by a few measured ones.

The prediction of :mod:`bitquilt.rounding.error` orders matrices of one kind well, and is off by a
factor that depends on the kind (what the residual stream and the softmax do with the error). One
measured divergence per kind of matrix, all of that kind rounded together, gives the factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bitquilt import grids
from bitquilt.bank import Bank
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.evaluation import written
from bitquilt.evaluation.written import Teacher
from bitquilt.progress import Step
from bitquilt.search.knapsack import Menu

PROBE_BELOW = 0.5
"""A kind is probed on the candidates nearest to this many bits below the budget's."""


@dataclass(frozen=True)
class Probe:
    """One kind of matrix rounded, all others exact."""

    kind: str
    grids: dict[str, str]
    """Module path → grid name."""
    predicted: float
    """Nats per token, summed over its matrices."""
    measured: float
    """Nats per token."""

    @property
    def factor(self) -> float:
        """What a prediction of this kind is multiplied by."""
        return self.measured / self.predicted if self.predicted > 0 else 1.0

    def answers(self, kind: str, assignment: Mapping[str, str]) -> bool:
        """Whether this is the probe of that kind on those grids."""
        return self.kind == kind and self.grids == assignment


def kind(module: str) -> str:
    """The kind of a matrix: the last part of its module path (``q_proj``, ``embed_tokens``)."""
    return module.rsplit(".", 1)[-1]


def prior(checkpoint: Checkpoint, menu: Menu) -> Menu:
    """Costs before anything is measured: rounding error falls fourfold a bit.

    Enough to plan sizes with; never what a quantized file is made from.
    """
    shapes = checkpoint.matrices

    def guess(module: str, grid: str) -> float:
        rows, columns = shapes[module]
        return float(rows * columns * 4.0 ** -grids.get(grid).bits)

    return {
        module: [replace(choice, divergence=guess(module, choice.grid)) for choice in choices]
        for module, choices in menu.items()
    }


def scored(bank: Bank, menu: Menu, factors: Mapping[str, float]) -> Menu:
    """The menu with each cell's predicted divergence, scaled by its kind's factor."""
    return {
        module: [
            replace(choice, divergence=predicted[choice.grid] * factors.get(kind(module), 1.0))
            for choice in choices
        ]
        for module, choices in menu.items()
        for predicted in [bank.predicted(module)]
    }


def probes(menu: Menu, bits: float) -> dict[str, dict[str, str]]:
    """Kind → the assignment that probes it: module path → grid."""
    out: dict[str, dict[str, str]] = {}
    for module, choices in menu.items():
        nearest = min(choices, key=lambda c: abs(grids.get(c.grid).bits - (bits - PROBE_BELOW)))
        out.setdefault(kind(module), {})[module] = nearest.grid
    return out


def measure(
    bank: Bank, teacher: Teacher, assignments: Mapping[str, Mapping[str, str]], step: Step
) -> list[Probe]:
    """Measure each kind's assignment against the full-precision model.

    Args:
        bank: where the rounded matrices are.
        teacher: the original on a few calibration windows.
        assignments: kind → module path → grid, from :func:`probes`.
        step: called after each kind.
    """
    found = []
    for name, assignment in assignments.items():
        measured = written.measure(teacher, bank.checkpoint, bank.weights(assignment)).kl.mean
        predicted = sum(bank.predicted(module)[grid] for module, grid in assignment.items())
        found.append(Probe(name, dict(assignment), predicted, measured))
        step()
    return found
