"""The cost of every (matrix, grid): predicted divergence, scaled by a few measured ones.

The prediction is close for most kinds of matrix and off by a factor for some (several times too
small for v, whose error attention averages over many tokens). One measured divergence per kind,
all of that kind disturbed together, gives the factor. Noise of a rounding's size disturbs them, so
the factors serve every grid, budget and target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitquilt import grids
from bitquilt.bank import Bank
from bitquilt.calibration.moments import Moments
from bitquilt.calibration.prediction import ROWS
from bitquilt.checkpoint.checkpoint import Checkpoint
from bitquilt.evaluation import written
from bitquilt.evaluation.written import Teacher
from bitquilt.grids.grid import Packed, PackedSource
from bitquilt.progress import Step
from bitquilt.search.knapsack import Choice, Menu
from bitquilt.search.measurements import Measurements

EXACT = "F32"
"""The grid of a matrix that is as it was."""
ALONE = 4
"""Windows that each cell is measured on where no prediction is trusted."""
NOISE = 0.1
"""Its size relative to the weights, that of a rounding to 3 or 4 bits."""


@dataclass(frozen=True)
class Probe:
    """One kind of matrix disturbed, all others exact; divergences in nats per token."""

    kind: str
    predicted: float
    """Summed over its matrices."""
    measured: float

    @property
    def factor(self) -> float:
        """What a prediction of this kind is multiplied by."""
        return self.measured / self.predicted if self.predicted > 0 else 1.0


def kind(module: str) -> str:
    """The kind of a matrix: the last part of its module path (``q_proj``, ``embed_tokens``)."""
    return module.rsplit(".", 1)[-1]


def kinds(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Kind → module paths."""
    found: dict[str, list[str]] = {}
    for module in checkpoint.matrices:
        found.setdefault(kind(module), []).append(module)
    return found


def measure(moments: Moments, teacher: Teacher, step: Step) -> list[Probe]:
    """Disturb each kind of matrix and measure how far the model moves.

    Args:
        moments: of the captured checkpoint.
        teacher: the original on a few calibration windows.
        step: called after each kind.
    """
    checkpoint, probes = moments.checkpoint, []
    for name, modules in kinds(checkpoint).items():
        predicted = sum(_predicted(moments, module) for module in modules)
        measured = written.measure(teacher, checkpoint, _disturbed(checkpoint, modules)).kl.mean()
        probes.append(Probe(name, predicted, float(measured)))
        step()
    return probes


def _predicted(moments: Moments, module: str) -> float:
    checkpoint = moments.checkpoint
    noise = _noise(checkpoint, module, checkpoint.load(f"{module}.weight"))
    return moments.divergence(module, noise, moments.hessian(module))


def _disturbed(checkpoint: Checkpoint, modules: list[str]) -> Callable[[str], Tensor]:
    def load(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        weight = checkpoint.load(name)
        return _noise(checkpoint, module, weight).add_(weight) if module in modules else weight

    return load


def _noise(checkpoint: Checkpoint, module: str, weight: Tensor) -> Tensor:
    """Gaussian noise [R, C], NOISE times the root mean square of each row; the same every time.

    A large embedding has gigabytes, so nothing else of the weight's size is made on the way.
    """
    seed = list(checkpoint.matrices).index(module)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    mean_squares = [rows.square().mean(1, keepdim=True) for rows in weight.split(ROWS)]
    return noise.mul_(NOISE * torch.cat(mean_squares).sqrt())


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


def with_originals(bank: Bank) -> PackedSource:
    """The bank's matrices, and as :data:`EXACT` the original ones."""

    def packed(module: str, grid: str) -> Packed:
        if grid == EXACT:
            return {"weight": bank.checkpoint.load(f"{module}.weight")}
        return bank.packed(module, grid)

    return packed


def measured(menu: Menu, measurements: Measurements, step: Step) -> Menu:
    """The menu with each cell's measured divergence, all other matrices exact.

    Args:
        menu: what each matrix may be put on.
        measurements: of mixes that may hold :data:`EXACT`.
        step: called after each cell.
    """
    windows = range(min(ALONE, measurements.windows))
    found: dict[str, list[Choice]] = {}
    for module, choices in menu.items():
        alone = [dict.fromkeys(menu, EXACT) | {module: choice.grid} for choice in choices]
        kl = measurements.samples(alone, windows).mean(1)
        found[module] = [
            replace(c, divergence=float(one)) for c, one in zip(choices, kl, strict=True)
        ]
        for _ in choices:
            step()
    return found


def scored(bank: Bank, menu: Menu, factors: Mapping[str, float]) -> Menu:
    """The menu with each cell's predicted divergence, scaled by its kind's factor."""
    return {
        module: [
            replace(choice, divergence=cells[choice.grid].divergence * factors[kind(module)])
            for choice in choices
        ]
        for module, choices in menu.items()
        for cells in [bank.cells(module)]
    }
