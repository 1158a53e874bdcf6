"""What a mix is predicted to cost, learned from mixes that were measured.

The scores of single cells (:mod:`.scores`) add up to a first prediction S. Measured mixes correct
it: KL ≈ Σ_j w_j F_j, where F_j is the sum of the scores over some part of the mix (a kind of
matrix, a grid, a kind on a grid, a block, one matrix) or, for the interactions of neighbours, the
sum of √(s_m s_n) over pairs of matrices that follow each other. It is Bayesian linear regression
on KL / S, so that errors count relatively: weights start at S itself with independent Gaussian
priors, and a few dozen mixes say which of them move. The width of the priors and the noise are
those of the largest evidence (MacKay 1992).

Letters: n measured mixes, p parts, M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from bitquilt.search.mixes import Floats, Mixes, Vector
from bitquilt.search.scores import kind

Column = Callable[..., int]
"""What sort of part, and which one → its number."""

SPREADS = {"all": 1.0, "kind": 1.0, "grid": 1.0, "kind and grid": 0.5, "block": 0.6, "matrix": 0.6}
"""Prior standard deviation of the weights of each sort of part, before the common factor."""
NEIGHBOURS = 0.1
"""The same for pairs of neighbours: there are as many terms of √(s_m s_n) as of s."""
WIDTHS = (0.25, 0.5, 1.0, 2.0)
UNMEASURED = 0.5
"""The factor of all spreads before anything is measured."""
NOISES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Among which the evidence chooses: the factor of all spreads, and the relative noise."""


class Parts:
    """The mixes of one menu taken apart: a matrix of sums for the regression."""

    def __init__(self, mixes: Mixes) -> None:
        names: dict[tuple[str, ...], int] = {}
        spreads: list[float] = []

        def column(sort: str, *which: str) -> int:
            if (key := (sort, *which)) not in names:
                names[key] = len(names)
                spreads.append(SPREADS.get(sort, NEIGHBOURS))
            return names[key]

        self.mixes = mixes
        belongs = [
            [_columns(column, module, choice.grid) for choice in choices]
            for module, choices in zip(mixes.modules, mixes.choices, strict=True)
        ]
        self._pairs = [column("pair", kind(a), kind(b)) for a, b in pairwise(mixes.modules)]
        self.spreads = np.array(spreads)
        self.cells = [np.zeros((len(own), len(spreads))) for own in belongs]
        """Of each matrix: what each of its choices adds to every part, [choices, p]."""
        for cells, own, scores in zip(self.cells, belongs, mixes.scores, strict=True):
            for cell, columns, score in zip(cells, own, scores, strict=True):
                cell[columns] = score
        self.roots = [np.sqrt(scores) for scores in mixes.scores]

    def of(self, mix: Vector) -> Floats:
        """The sums of one mix [p]; the first is S."""
        sums: Floats = np.sum([own[i] for own, i in zip(self.cells, mix, strict=True)], axis=0)
        roots = [own[i] for own, i in zip(self.roots, mix, strict=True)]
        np.add.at(sums, self._pairs, np.multiply(roots[:-1], roots[1:]))
        return sums

    def around(self, mix: Vector, weights: Floats) -> list[Floats]:
        """Of each matrix: the KL of the mix with each of its choices there, less a constant."""
        costs = [cells @ weights for cells in self.cells]
        roots = [own[i] for own, i in zip(self.roots, mix, strict=True)]
        for m, column in enumerate(self._pairs):
            costs[m] = costs[m] + weights[column] * self.roots[m] * roots[m + 1]
            costs[m + 1] = costs[m + 1] + weights[column] * roots[m] * self.roots[m + 1]
        return costs


def _columns(column: Column, module: str, grid: str) -> list[int]:
    """The parts that a cell belongs to."""
    own = kind(module)
    block = module.split(".")[2] if ".layers." in module else module
    return [
        column("all"),
        column("kind", own),
        column("grid", grid),
        column("kind and grid", own, grid),
        column("block", block),
        column("matrix", module),
    ]


@dataclass(frozen=True)
class Surrogate:
    """A distribution of weights, given what was measured."""

    parts: Parts
    mean: Floats
    """[p]."""
    spread: Floats
    """A root of the covariance [p, p]."""
    checked: Floats
    """Of each measured mix: what the others predict for it, relative to what was measured [n]."""

    @classmethod
    def fit(cls, parts: Parts, measured: Sequence[tuple[Vector, float]]) -> Surrogate:
        """Learn from measured mixes; with none, the scores are all there is."""
        prior = np.zeros_like(parts.spreads)
        prior[0] = 1.0
        if not measured:
            return cls(parts, prior, np.diag(UNMEASURED * parts.spreads), np.empty(0))
        sums = np.array([parts.of(mix) for mix, _ in measured])  # [n, p]
        x = sums / sums[:, :1]
        ratios = np.array([divergence for _, divergence in measured]) / sums[:, 0]
        y = ratios - 1.0
        fits = [
            _Fit.of(x, y, parts.spreads * width, noise) for width, noise in product(WIDTHS, NOISES)
        ]
        best = max(fits, key=lambda fit: fit.evidence)
        return cls(parts, prior + best.mean, best.root(x), 1 + (best.left_out - y) / ratios)

    def predict(self, mix: Vector) -> float:
        """The expected KL of a mix."""
        return float(self.parts.of(mix) @ self.mean)

    def draw(self, rng: np.random.Generator) -> Floats:
        """Weights that what was measured allows [p]."""
        drawn: Floats = self.mean + self.spread @ rng.standard_normal(len(self.mean))
        return drawn


@dataclass(frozen=True)
class Trust:
    """How well something predicts what was measured."""

    rank: float
    """Rank correlation (Spearman 1904)."""
    error: float
    """Root mean square of the relative error, after the best common factor."""

    @classmethod
    def of(cls, predicted: Floats, measured: Floats) -> Trust:
        """Compare predictions [n] with measurements [n], at least two."""
        a, b = (np.argsort(np.argsort(values)).astype(float) for values in (predicted, measured))
        ratios = predicted / measured
        error = (ratios / ratios.mean()).std()
        return cls(float(np.corrcoef(a, b)[0, 1]), float(error))

    def __str__(self) -> str:
        return f"rank correlation {self.rank:.2f} and an error of {self.error:.1%}"


@dataclass(frozen=True)
class _Fit:
    """Regression of y [n] on x [n, p] with one prior."""

    spreads: Floats
    noise: float
    mean: Floats
    """Of the weights, less their prior mean [p]."""
    left_out: Floats
    """Prediction of each y from all others [n]."""
    evidence: float
    """Logarithm, less a constant."""

    @classmethod
    def of(cls, x: Floats, y: Floats, spreads: Floats, noise: float) -> _Fit:
        covariance = (x * spreads**2) @ x.T + noise**2 * np.eye(len(y))  # of y, [n, n]
        inverse = np.linalg.inv(covariance)
        solved = inverse @ y
        evidence = -0.5 * (y @ solved + np.linalg.slogdet(covariance)[1])
        left_out = y - solved / inverse.diagonal()
        return cls(spreads, noise, spreads**2 * (x.T @ solved), left_out, float(evidence))

    def root(self, x: Floats) -> Floats:
        """A root of the posterior covariance of the weights [p, p]."""
        scaled = x * self.spreads / self.noise
        values, vectors = np.linalg.eigh(scaled.T @ scaled)
        root: Floats = self.spreads[:, None] * vectors / np.sqrt(1 + values.clip(0))
        return root
