"""95 % intervals over documents: the tokens of one document hang together, documents do not.

Means are ratio estimates over documents of different lengths. Their intervals come from the
studentized bootstrap (Efron & Tibshirani 1993, ch. 12; Rao & Wu 1988 for drawing G − 1 of G), with
neither end nearer than Student's t puts it. So they still cover with a dozen documents, where
percentiles of resampled means do not (docs/decisions/intervals.md); quantiles invert the interval
of a share (Woodruff 1952).

Letters: T tokens, G documents, S strata (domains, each of the same weight), B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitquilt.metrics.kl import Estimate

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 5
"""Documents of one stratum below which no interval is given: nothing honest can be said."""

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Documents:
    """Which document each token is in, and which stratum each document is in."""

    of_token: Ints
    """[T], 0 … G − 1."""
    stratum: Ints
    """[G], 0 … S − 1."""

    @classmethod
    def of(cls, documents: Ints, domains: Ints | NDArray[np.str_]) -> Documents:
        """From any labels, one a token [T]; every domain becomes a stratum."""
        _, first, of_token = np.unique(documents, return_index=True, return_inverse=True)
        _, stratum = np.unique(domains[first], return_inverse=True)
        return cls(of_token, stratum)

    @classmethod
    def windows(cls, count: int, tokens: int) -> Documents:
        """Windows of one text, each taken for a document of its own."""
        return cls(np.repeat(np.arange(count), tokens), np.zeros(count, np.int64))

    def mean(self, values: Floats, level: float = LEVEL) -> Estimate:
        """The mean of values [T], every stratum with the same weight, and its interval."""
        found = self.ratio(values, np.ones(len(values)), level)
        least, most = float(values.min()), float(values.max())  # no mean lies beyond them
        return Estimate(
            found.mean,
            float(np.clip(found.low, least, most)),
            float(np.clip(found.high, least, most)),
        )

    def ratio(self, values: Floats, sizes: Floats, level: float = LEVEL) -> Estimate:
        """Estimate the sum of values over the sum of sizes, both [T], with its interval."""
        mean, error, drawn = self._studentized(values, sizes)
        if math.isnan(error):
            return Estimate(mean, math.nan, math.nan)
        if error == 0.0:
            return Estimate(mean, mean, mean)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        # few documents seldom show how far out others lie
        plain = student(level, len(self.stratum) - len(self._draws))
        return Estimate(
            mean, float(mean - max(high, plain) * error), float(mean - min(low, -plain) * error)
        )

    def quantile(self, values: Floats, share: float) -> Estimate:
        """The value that ``share`` of the tokens do not exceed, and its interval.

        The share of tokens beyond it has an interval, on a log scale; its ends are read off as
        quantiles again.
        """
        order = np.argsort(values)
        strata = self.stratum[self.of_token]
        weights = (1 / np.bincount(strata)[strata])[order]
        reached = np.cumsum(weights) / weights.sum()

        def beyond(tail: float) -> float:
            place = int(np.searchsorted(reached, 1 - tail - 1e-9))  # beyond rounding of the sum
            return float(values[order[min(place, len(values) - 1)]])

        found = beyond(1 - share)
        tail, error, drawn = self._studentized(values > found, np.ones(len(values)))
        if math.isnan(error) or tail == 0.0:
            return Estimate(found, math.nan, math.nan)
        if error == 0.0:
            return Estimate(found, found, found)
        spread = math.exp(np.quantile(np.abs(drawn), LEVEL) * error / tail)
        return Estimate(found, beyond((1 - share) * spread), beyond((1 - share) / spread))

    @cached_property
    def _draws(self) -> list[tuple[Ints, Floats]]:
        """Per stratum its documents, and how often each is drawn [1 + B, its documents].

        The first row is the sample itself.
        """
        random = np.random.default_rng(0)
        found: list[tuple[Ints, Floats]] = []
        for index in range(int(self.stratum.max()) + 1):
            own = np.flatnonzero(self.stratum == index)
            count = len(own)
            drawn = random.multinomial(max(count - 1, 1), np.full(count, 1 / count), RESAMPLES)
            found.append((own, np.vstack([np.ones(count), drawn])))
        return found

    def _sums(self, values: Floats | NDArray[np.bool_]) -> Floats:
        """Sums over each document [G]."""
        weights = values.astype(np.float64)
        return np.bincount(self.of_token, weights, minlength=len(self.stratum)).astype(np.float64)

    def _studentized(
        self, values: Floats | NDArray[np.bool_], sizes: Floats
    ) -> tuple[float, float, Floats]:
        """The ratio, its standard error, and (ratio − truth) / error as resampling finds it [≤ B].

        ``values`` and ``sizes`` are [T].
        """
        total, size = self._sums(values), self._sums(sizes)
        strata = [_ratios(total[own], size[own], drawn) for own, drawn in self._draws]
        means = np.mean([ratio for ratio, _ in strata], 0)
        errors = np.sqrt(np.sum([variance for _, variance in strata], 0)) / len(strata)
        usable = errors[1:] > 0
        drawn = (means[1:][usable] - means[0]) / errors[1:][usable]
        return float(means[0]), float(errors[0]), drawn


def _ratios(sums: Floats, sizes: Floats, drawn: Floats) -> tuple[Floats, Floats]:
    """Ratios of sums [G] over sizes [G] and their linearized variances, one a row of ``drawn``."""
    count = drawn.sum(1)
    drawn_size = drawn @ sizes
    ratios = drawn @ sums / drawn_size
    if len(sums) < FEWEST:
        return ratios, np.full(len(drawn), math.nan)
    crossed = ratios * (drawn @ (sums * sizes))
    squares = drawn @ sums**2 - 2 * crossed + ratios**2 * (drawn @ sizes**2)
    return ratios, squares.clip(0) * count / (count - 1) / drawn_size**2


def student(level: float, freedom: int) -> float:
    """What Student's t stays within that often either way, to 1 % from 4 degrees of freedom on.

    The first terms of Cornish and Fisher's series (Abramowitz & Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def through(estimate: Estimate, increasing: Callable[[float], float]) -> Estimate:
    """An estimate of an increasing function of what was estimated."""
    return Estimate(increasing(estimate.mean), increasing(estimate.low), increasing(estimate.high))
