"""What an allocation is predicted to cost, learned from allocations that were measured.

The scores of single cells (:mod:`.sensitivity`) add up to a first prediction S. Measurements
correct it: KL ≈ Σ_j w_j F_j, where F_j is the sum of the scores over some part of the model (a kind
of matrix, a type, a kind on a type, a block, one matrix) or, for the interactions of neighbours,
the sum of √(s_m s_n) over pairs of matrices that follow each other. It is Bayesian linear
regression on KL / S, so that errors count relatively: weights start at S itself with independent
Gaussian priors, and a few dozen measured allocations say which of them move.

Every text has its own level, and weights of its own around those of all text: what ten allocations
show on one text is not ten independent findings. How wide the priors are, how much texts differ and
how much noise is left are what gives the largest evidence (MacKay 1992).

Letters: n observations, p parts, M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from bitquilt.allocation.sensitivity import block
from bitquilt.allocation.space import AllocationSpace, AllocationVector, Float64Array
from bitquilt.models.names import kind_of

_Column = Callable[..., int]
"""What sort of part, and which one → its number."""

SPREADS = {"all": 1.0, "kind": 1.0, "type": 1.0, "kind and type": 0.5, "block": 0.6, "matrix": 0.6}
"""Prior standard deviation of the weights of each sort of part, before the common factor."""
PAIR_SPREAD = 0.1
"""Prior standard deviation of the weights of pairs of neighbours: there are as many terms of
√(s_m s_n) as of s."""
UNMEASURED = 0.3
"""The factor of all spreads before anything is measured."""
LEVEL_SPREAD = 0.3
"""Prior standard deviation of the level of a text."""
SPREAD_FACTORS = (0.1, 0.25, 0.5, 1.0)
"""Values among which the evidence chooses the factor of all spreads."""
TEXT_SPREADS = (0.0, 0.5, 1.0, 2.0)
"""Values among which it chooses the spread of one text's weights, relative to those spreads."""
RESIDUAL_SPREADS = (0.005, 0.01, 0.02, 0.04)
"""Values among which it chooses the spread of what the weights do not explain."""


class Observation(NamedTuple):
    """One measured allocation."""

    text: int
    """Number of the text; observations on one text are compared with each other."""
    vector: AllocationVector
    kl: float


class Parts:
    """The allocations of one space taken apart: a matrix of sums for the regression."""

    def __init__(self, space: AllocationSpace) -> None:
        names: dict[tuple[str, ...], int] = {}
        spreads: list[float] = []

        def column(sort: str, *which: str) -> int:
            if (key := (sort, *which)) not in names:
                names[key] = len(names)
                spreads.append(SPREADS.get(sort, PAIR_SPREAD))
            return names[key]

        self.space = space
        belongs = [
            [_columns(column, module, qtype) for qtype in qtypes]
            for module, qtypes in zip(space.modules, space.qtypes, strict=True)
        ]
        self._pairs = [column("pair", kind_of(a), kind_of(b)) for a, b in pairwise(space.modules)]
        self.spreads = np.array(spreads)
        self.cells = [np.zeros((len(own), len(spreads))) for own in belongs]
        """What each choice of each matrix adds to every part: one array [choices, p] a matrix."""
        for cells, own, scores in zip(self.cells, belongs, space.scores, strict=True):
            for cell, columns, score in zip(cells, own, scores, strict=True):
                cell[columns] = score
        self.roots = [np.sqrt(scores) for scores in space.scores]

    def of(self, vector: AllocationVector) -> Float64Array:
        """Return the sums of one allocation [p]; the first is S."""
        sums: Float64Array = np.sum(
            [own[i] for own, i in zip(self.cells, vector, strict=True)], axis=0
        )
        roots = [own[i] for own, i in zip(self.roots, vector, strict=True)]
        np.add.at(sums, self._pairs, np.multiply(roots[:-1], roots[1:]))
        return sums

    def around(self, vector: AllocationVector, weights: Float64Array) -> list[Float64Array]:
        """Return, for each matrix, the KL with each of its choices there, less a constant."""
        costs = [cells @ weights for cells in self.cells]
        roots = [own[i] for own, i in zip(self.roots, vector, strict=True)]
        for m, column in enumerate(self._pairs):
            costs[m] = costs[m] + weights[column] * self.roots[m] * roots[m + 1]
            costs[m + 1] = costs[m + 1] + weights[column] * roots[m] * self.roots[m + 1]
        return costs


def _columns(column: _Column, module: str, qtype: str) -> list[int]:
    """Return the parts that a cell belongs to."""
    own = kind_of(module)
    return [
        column("all"),
        column("kind", own),
        column("type", qtype),
        column("kind and type", own, qtype),
        column("block", block(module)),
        column("matrix", module),
    ]


@dataclass(frozen=True)
class Surrogate:
    """A distribution of weights, given what was measured."""

    parts: Parts
    mean: Float64Array
    """The expected weights [p]."""
    root: Float64Array
    """A root of the covariance [p, p]."""

    @classmethod
    def prior(cls, parts: Parts) -> Surrogate:
        """Return the distribution before anything is measured: the scores are all there is."""
        return cls(parts, _prior(parts), np.diag(UNMEASURED * parts.spreads))

    @classmethod
    def fit(
        cls, parts: Parts, observations: Sequence[Observation]
    ) -> tuple[Surrogate, FitQuality, FitQuality]:
        """Learn from measured allocations.

        Returns:
            The surrogate; how well the scores alone predict KL among allocations on one text; and
            how well the surrogate does, each observation left out in turn.
        """
        sums = np.array([parts.of(one.vector) for one in observations])  # [n, p]
        texts = np.array([one.text for one in observations])
        same = (texts[:, None] == texts).astype(float)  # [n, n]
        ratios = np.array([one.kl for one in observations]) / sums[:, 0]
        ratios /= same @ ratios / same.sum(1)
        x, y = sums / sums[:, :1], ratios - 1.0  # [n, p], [n]
        priors = [
            _Prior(parts.spreads * width, text, noise)
            for width, text, noise in product(SPREAD_FACTORS, TEXT_SPREADS, RESIDUAL_SPREADS)
        ]
        best = max(priors, key=lambda prior: prior.evidence(x, y, same))
        mean, root, left_out = best.posterior(x, y, same)
        totals = sums[:, 0] / (same @ sums[:, 0] / same.sum(1))
        quality = [
            FitQuality.of(totals * by, totals * ratios) for by in (np.ones_like(y), 1 + left_out)
        ]
        return cls(parts, _prior(parts) + mean, root), quality[0], quality[1]

    def predict(self, vector: AllocationVector) -> float:
        """Return the expected KL of an allocation, on text of the usual level."""
        return float(self.parts.of(vector) @ self.mean)

    def draw(self, rng: np.random.Generator) -> Float64Array:
        """Draw weights [p] that are possible after what was measured."""
        drawn: Float64Array = self.mean + self.root @ rng.standard_normal(len(self.mean))
        return drawn


def _prior(parts: Parts) -> Float64Array:
    """Return the expected weights before anything is measured: S itself [p]."""
    prior = np.zeros_like(parts.spreads)
    prior[0] = 1.0
    return prior


@dataclass(frozen=True)
class FitQuality:
    """How well something predicts the KL of allocations on one text."""

    rank: float
    """Rank correlation (Spearman 1904)."""
    error: float
    """Root mean square of the relative error, after the best factor for the text."""

    @classmethod
    def of(cls, predicted: Float64Array, measured: Float64Array) -> FitQuality:
        """Compare predictions with measurements [n], relative to the mean of their text."""
        a, b = (np.argsort(np.argsort(values)).astype(float) for values in (predicted, measured))
        return cls(float(np.corrcoef(a, b)[0, 1]), float((predicted / measured).std()))

    def __str__(self) -> str:
        return f"rank correlation {self.rank:.2f}, error {self.error:.1%}"


@dataclass(frozen=True)
class _Prior:
    """What is believed of the weights [p] before y [n] = x [n, p] · weights is seen."""

    spreads: Float64Array
    """Standard deviations [p]."""
    text: float
    """Spread of the weights of one text around those of all, relative to these."""
    noise: float

    def _covariance(self, x: Float64Array, same: Float64Array) -> Float64Array:
        """Return y's covariance [n, n]; ``same`` is 1 where two observations are of one text."""
        scaled = x * self.spreads
        shared: Float64Array = scaled @ scaled.T * (1 + self.text**2 * same)
        return shared + LEVEL_SPREAD**2 * same + self.noise**2 * np.eye(len(x))

    def evidence(self, x: Float64Array, y: Float64Array, same: Float64Array) -> float:
        """Return the logarithm of the probability of y, less a constant."""
        lower = np.linalg.cholesky(self._covariance(x, same))
        whitened = np.linalg.solve(lower, y)
        return float(-0.5 * whitened @ whitened - np.log(lower.diagonal()).sum())

    def posterior(
        self, x: Float64Array, y: Float64Array, same: Float64Array
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Update the belief.

        Returns:
            The mean of the weights [p], a root of their covariance [p, p], and each y [n] as the
            others predict it (Sundararajan and Keerthi 2001).
        """
        scaled = x * self.spreads
        inverse = np.linalg.inv(self._covariance(x, same))
        solved = inverse @ y
        values, vectors = np.linalg.eigh(np.eye(x.shape[1]) - scaled.T @ inverse @ scaled)
        root = self.spreads[:, None] * vectors * np.sqrt(values.clip(0))
        return self.spreads * (scaled.T @ solved), root, y - solved / inverse.diagonal()
