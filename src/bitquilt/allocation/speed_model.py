"""Seconds that a token takes, learned from files that were timed.

Generating a token reads every matrix once, so its time is a sum over matrices, plus what no type
changes. How long a matrix takes is its number of weights times a pace; a pace belongs to a type,
and is a little different for every shape. That is a linear model: files whose shapes take their
types in turn show every pace several times over, each file counting relative to its own time.

Letters: n timed files, p paces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bitquilt.allocation.space import CandidateSets, Float64Array

TIMING_NOISES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Spreads of a timed file's seconds around the model's, relative to them: they say how much else
the machine does. The evidence (MacKay 1992) chooses among them."""
QTYPE_SPREAD, SHAPE_SPREAD = 1.0, 0.2
"""Prior spread of the paces of types around their mean, and of shapes around their type's, both
relative to that mean."""
LEAST_PACE = 0.1
"""A type is at most ten times as fast as the mean: between 2 bits and 16 there is a factor of 8."""


class TypedShape(NamedTuple):
    """A shape on a type; all matrices that share both take the same time."""

    rows: int
    columns: int
    qtype: str


@dataclass(frozen=True)
class TimedFile:
    """A file that was timed."""

    matrices: Mapping[TypedShape, int]
    """How many matrices the file has of each shape on each type."""
    seconds: float
    """Seconds for one token."""


@dataclass(frozen=True)
class SpeedModel:
    """How long tokens take in one engine on one machine."""

    base: float
    """Seconds that no matrix accounts for."""
    paces: Mapping[TypedShape, float]
    """Shape on a type → seconds of one matrix."""
    error: float
    """Root mean square of the relative error, each timed file predicted from the others."""

    @classmethod
    def fit(cls, runs: Sequence[TimedFile]) -> SpeedModel:
        """Learn from timed files: Bayesian linear regression with independent Gaussian priors."""
        cells = list(dict.fromkeys(cell for run in runs for cell in run.matrices))
        names = list(dict.fromkeys(cell.qtype for cell in cells))
        weights = np.array(
            [[run.matrices.get(c, 0) * c.rows * c.columns for c in cells] for run in runs], float
        )  # [n, cells]
        seconds = np.array([run.seconds for run in runs])  # [n]
        pace = float((seconds / weights.sum(1)).mean())
        of_qtype = np.array([[cell.qtype == name for name in names] for cell in cells], float)
        x = np.hstack(
            [
                np.full((len(runs), 1), seconds.mean()),
                weights @ of_qtype * (QTYPE_SPREAD * pace),
                weights * (SHAPE_SPREAD * pace),
            ]
        )  # [n, p]
        expected = weights.sum(1) * pace
        x, y = x / seconds[:, None], 1 - expected / seconds
        parts, left_out = _ridge(x, y)
        if parts[0] < 0:  # nothing takes less than no time: without a base the others fit best
            parts, left_out = _ridge(x * (np.arange(x.shape[1]) > 0), y)
        base, qtypes, shapes = np.split(parts, [1, 1 + len(names)])
        own = pace * (1 + QTYPE_SPREAD * of_qtype @ qtypes + SHAPE_SPREAD * shapes)
        # on a busy machine a Gaussian can be below what takes any time at all
        own = np.maximum(own, LEAST_PACE * pace)
        paces = {c: float(p * c.rows * c.columns) for c, p in zip(cells, own, strict=True)}
        return cls(float(base[0] * seconds.mean()), paces, float(np.sqrt((left_out**2).mean())))

    def timed(self, sets: CandidateSets, shapes: Mapping[str, tuple[int, int]]) -> CandidateSets:
        """Return candidates with the seconds of each.

        Args:
            sets: the candidates of each matrix.
            shapes: (rows, columns) of matrices that every token reads; the others take no time.
        """
        return {
            module: [
                replace(c, seconds=self.paces[TypedShape(*shapes[module], c.qtype)])
                if module in shapes
                else c
                for c in candidates
            ]
            for module, candidates in sets.items()
        }


def _ridge(x: Float64Array, y: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Standard normal coefficients [p] of y [n] = x [n, p] · them + noise, and what is left [n].

    What is left of each y is left by a fit to the others (Sundararajan and Keerthi 2001).
    """

    def covariance(noise: float) -> Float64Array:
        own: Float64Array = x @ x.T + noise**2 * np.eye(len(x))
        return own

    def evidence(noise: float) -> float:
        lower = np.linalg.cholesky(covariance(noise))
        whitened = np.linalg.solve(lower, y)
        return float(-0.5 * whitened @ whitened - np.log(lower.diagonal()).sum())

    inverse = np.linalg.inv(covariance(max(TIMING_NOISES, key=evidence)))
    solved = inverse @ y
    return x.T @ solved, solved / inverse.diagonal()
