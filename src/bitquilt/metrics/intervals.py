"""95 % intervals over documents: the tokens of one document hang together, documents do not.

Means are ratio estimates over documents of different lengths. Their intervals come from the
studentized bootstrap (Efron & Tibshirani 1993, ch. 12; Rao & Wu 1988 for drawing G − 1 of G), with
neither end nearer than Student's t puts it. So they still cover with a dozen documents, where
percentiles of resampled means do not (docs/decisions/intervals.md). What cannot be negative has its
interval on a log scale, a share has Wilson's, and quantiles invert the interval of a share
(Woodruff 1952): no interval holds what its figure cannot be.

Letters: T tokens, G documents, S strata (domains, each of the same weight), B resamples.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitquilt.metrics.kl import Estimate

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 5
"""Documents of one stratum below which no interval is given: nothing honest can be said. Documents
of unlike lengths count as fewer (:func:`like_lengths`)."""
FEWEST_BEYOND = 10
"""Tokens that have to exceed a quantile, or it has no interval: its end may be beyond them all."""
LONGEST = 10.0
"""A mean of what is not negative has no interval if its high end would be more than so many times
the mean: one odd document then has all the say, and the end may be anything."""
LARGEST_EXPONENT = math.log(sys.float_info.max)

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class _Spread(NamedTuple):
    """A ratio, and how far it may be off."""

    ratio: float
    error: float
    """Its standard error; NaN where there are too few documents."""
    freedom: float
    """Degrees of freedom of that error."""
    ratios: Floats
    """Those of the resamples [≤ B] that have an error."""
    errors: Floats

    def reach(self, studentized: Floats, level: float) -> tuple[float, float]:
        """How many standard errors the ends are below and above, by resamples [≤ B] of
        (ratio − truth) / error: few documents seldom show how far out others lie, so neither is
        nearer than Student's t.
        """
        plain = student(level, self.freedom)
        if not len(studentized):
            return plain, plain
        low, high = np.quantile(studentized, [(1 - level) / 2, (1 + level) / 2])
        return max(float(high), plain), max(float(-low), plain)


@dataclass(frozen=True)
class Documents:
    """Which document each token is in, and which stratum each document is in."""

    of_token: Ints
    """[T], 0 … G − 1."""
    stratum: Ints
    """[G], 0 … S − 1."""

    @classmethod
    def of(cls, documents: Ints, domains: Ints | NDArray[np.str_] | None = None) -> Documents:
        """From any labels, one a token [T]; every domain becomes a stratum, if any are given."""
        _, first, of_token = np.unique(documents, return_index=True, return_inverse=True)
        if domains is None:
            return cls(of_token, np.zeros(len(first), np.int64))
        _, stratum = np.unique(domains[first], return_inverse=True)
        return cls(of_token, stratum)

    def mean(self, values: Floats, level: float = LEVEL) -> Estimate:
        """The mean of values [T] of either sign, every stratum with the same weight."""
        found = self._spread(values, np.ones(len(values)))
        mean, error = found.ratio, found.error
        if not error > 0:
            return Estimate(mean, mean + error, mean + error)
        below, above = found.reach((found.ratios - mean) / found.errors, level)
        return Estimate(mean, mean - below * error, mean + above * error)

    def positive(self, values: Floats, sizes: Floats | None = None) -> Estimate:
        """The mean of values [T] that are not negative, or the sum of them over that of ``sizes``.

        The interval is made on a log scale, so that its low end is not negative either. Its high
        end is not nearer than the resamples put it without a logarithm. What rounding has put
        below zero is zero.
        """
        at_least = np.maximum(values, 0)
        found = self._spread(at_least, np.ones(len(values)) if sizes is None else sizes)
        mean, error = found.ratio, found.error
        if not error > 0:
            return Estimate(mean, mean + error, mean + error)
        there = found.ratios > 0
        ratios, errors = found.ratios[there], found.errors[there]
        below, _ = found.reach(np.log(ratios / mean) * ratios / errors, LEVEL)
        _, above = found.reach((ratios - mean) / errors, LEVEL)
        relative = error / mean
        longest = max(exponential(student(LEVEL, found.freedom) * relative), 1 + above * relative)
        if longest > LONGEST:
            return Estimate(mean, math.nan, math.nan)
        return Estimate(mean, mean * math.exp(-below * relative), mean * longest)

    def share(self, hits: Floats) -> Estimate:
        """The share of tokens where ``hits`` [T] is 1 rather than 0, with Wilson's interval.

        It is for as many independent tokens as the error amounts to, never more than there are
        (Korn & Graubard 1998).
        """
        found = self._spread(hits, np.ones(len(hits)))
        mean, error = found.ratio, found.error
        if math.isnan(error):
            return Estimate(mean, math.nan, math.nan)
        count = min(len(hits), mean * (1 - mean) / error**2 if error else math.inf)
        drawn = found.ratios
        # as in Wilson's, the spread is that at the truth, which is the mean to a resample
        alike = np.sqrt((drawn * (1 - drawn)).clip(0) / max(mean * (1 - mean), 1e-300))
        below, above = found.reach((drawn - mean) / found.errors * alike, LEVEL)
        return Estimate(mean, wilson(mean, count, below).low, wilson(mean, count, above).high)

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
        spread = self._spread(values > found, np.ones(len(values)))
        tail, error = spread.ratio, spread.error
        if math.isnan(error) or (1 - share) * len(values) < FEWEST_BEYOND:
            return Estimate(found, math.nan, math.nan)
        if error == 0.0 or tail == 0.0:
            return Estimate(found, found, found)
        drawn = np.abs(spread.ratios - tail) / spread.errors
        times = exponential(np.quantile(drawn, LEVEL) * error / tail)
        return Estimate(found, beyond((1 - share) * times), beyond((1 - share) / times))

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

    def _spread(self, values: Floats | NDArray[np.bool_], sizes: Floats) -> _Spread:
        """The sum of values over the sum of sizes, both [T], a mean over strata."""
        total, size, lengths = self._sums(values), self._sums(sizes), np.bincount(self.of_token)
        strata = [_ratios(total[own], size[own], drawn) for own, drawn in self._draws]
        means = np.mean([ratio for ratio, _ in strata], 0)
        variances = np.array([variance for _, variance in strata])
        freedoms = np.array([like_lengths(lengths[own]) - 1 for own, _ in self._draws])
        if freedoms.min() < FEWEST - 1 - 1e-9:
            return _Spread(float(means[0]), math.nan, math.nan, means[:0], means[:0])
        own = variances[:, 0]
        # Satterthwaite 1946: a stratum with all of the error has all of the say
        shared = own.sum() ** 2 / (own**2 / freedoms).sum() if own.any() else freedoms.sum()
        errors = np.sqrt(variances.sum(0)) / len(strata)
        usable = errors[1:] > 0
        return _Spread(
            float(means[0]), float(errors[0]), float(shared), means[1:][usable], errors[1:][usable]
        )


def _ratios(sums: Floats, sizes: Floats, drawn: Floats) -> tuple[Floats, Floats]:
    """Ratios of sums [G] over sizes [G] and their linearized variances, one a row of ``drawn``."""
    count = np.maximum(drawn.sum(1), 2)  # of one document the variance is 0
    drawn_size = drawn @ sizes
    drawn_size[drawn_size == 0] = math.nan  # an answer of an end token alone is no text
    ratios = drawn @ sums / drawn_size
    crossed = ratios * (drawn @ (sums * sizes))
    squares = drawn @ sums**2 - 2 * crossed + ratios**2 * (drawn @ sizes**2)
    return ratios, squares.clip(0) * count / (count - 1) / drawn_size**2


def like_lengths(lengths: Ints) -> float:
    """How many documents of one length tell as much as these [G] do (Kish 1965)."""
    total = float(lengths.sum())
    return total**2 / float((lengths.astype(np.float64) ** 2).sum())


def too_few(documents: int) -> str:
    """Say why a figure over so many documents has no interval; it ends or stands in a sentence."""
    if documents < FEWEST:
        return f"too few documents for an interval ({documents}; at least {FEWEST} are needed)"
    return (
        f"too few documents for an interval ({documents}, but so unlike each other that they "
        f"count as fewer than the {FEWEST} that are needed)"
    )


def wilson(share: float, count: float, quantile: float) -> Estimate:
    """A share of ``count`` independent trials with its interval, within 0 and 1 (Wilson 1927).

    Args:
        share: the share of hits.
        count: of trials; it need not be whole.
        quantile: how many standard errors the interval reaches.
    """
    more = quantile**2 / count
    middle = (share + more / 2) / (1 + more)
    half = quantile * math.sqrt(share * (1 - share) / count + more / (4 * count)) / (1 + more)
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def student(level: float, freedom: float) -> float:
    """What Student's t stays within that often either way, to 1 % from 4 degrees of freedom on.

    The first terms of Cornish and Fisher's series (Abramowitz & Stegun 1964, 26.7.5).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def exponential(exponent: float) -> float:
    """Raise e to the power of a number; the largest float there is where that is beyond it."""
    return math.exp(min(exponent, LARGEST_EXPONENT))


def through(estimate: Estimate, increasing: Callable[[float], float]) -> Estimate:
    """An estimate of an increasing function of what was estimated."""
    return Estimate(increasing(estimate.mean), increasing(estimate.low), increasing(estimate.high))
