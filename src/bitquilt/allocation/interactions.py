"""Interactions: what each matrix adds to the KL of a whole allocation.

A prediction (:mod:`.sensitivity`) is about one matrix rounded and all others exact. Errors meet,
though: predictions add up to less than half of an allocation's KL, and to a quarter below 3 bits.
The attribution of a matrix (:mod:`.attribution`) holds half of what it has in common with every
other. An attribution over its prediction is the correction of that matrix's scores, on every type.

On a few windows most attributions are known to a third at best. So corrections are Gaussian around
a common one, with deviations that matrices of one kind share, that those of one block share, and
that each has alone; how wide these three are is what gives the largest evidence, given the noise
that batches show: of each matrix, since an embedding's attribution is known well, moderated by the
usual one (Smyth 2004).

Letters: B batches of text, M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from bitquilt.allocation.sensitivity import block
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, Float64Array
from bitquilt.models.names import kind_of
from bitquilt.qtypes.qtype import Allocation

CORRECTION_SPREADS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Standard deviations among which the evidence chooses, relative to the common correction."""
USUAL = 2
"""The usual noise counts as much as so many batches that show a matrix's own."""
BOUNDS = (0.2, 5.0)
"""A correction over the common one, at least and at most."""


def corrected_scores(
    space: AllocationSpace,
    capacities: Sequence[int],
    attribution: Callable[[Allocation], Float64Array],
) -> AllocationSpace:
    """Return the space with scores that hold what matrices cost together.

    Args:
        space: what may be chosen, scored by predictions.
        capacities: bytes that the matrices may take; corrections are averaged over them.
        attribution: measures an allocation, as :func:`~.attribution.kl_attribution` does.
    """
    logs = []
    for capacity in dict.fromkeys(capacities):
        vector = solve(space, capacity)
        predicted = [own[index] for own, index in zip(space.scores, vector, strict=True)]
        samples = attribution(space.allocation(vector))
        corrections = sensitivity_corrections(samples, np.array(predicted), space.modules)
        logs.append(np.log(corrections))
    return space.scaled(np.exp(np.mean(logs, axis=0)))


def sensitivity_corrections(
    samples: Float64Array, predicted: Float64Array, modules: Sequence[str]
) -> Float64Array:
    """Return what the predictions of each matrix are to be multiplied by [M].

    Args:
        samples: attributions [B, M], of at least two batches.
        predicted: what the same matrices of the same allocation cost alone [M].
        modules: their paths.
    """
    known = predicted > 0  # an exact matrix has neither an attribution nor an error
    ratios = samples[:, known] / predicted[known]
    common = float(np.median(ratios.mean(0))) if known.any() else 0.0
    found = np.ones(len(modules))
    if common <= 0:  # KL drowns in the noise of its slope
        return found
    own = [module for module, there in zip(modules, known, strict=True) if there]
    found[known] = common * np.clip(_shrunk(ratios / common, own), *BOUNDS)
    found[~known] = common
    return found


def _shrunk(ratios: Float64Array, modules: Sequence[str]) -> Float64Array:
    """Return the expected ratio of each matrix [M], given samples [B, M] around 1."""
    samples, count = ratios.shape
    spread, freedom = ratios.var(0, ddof=1), samples - 1
    moderated = (USUAL * np.median(spread) + freedom * spread) / (USUAL + freedom)
    noise = np.diag(moderated / samples + 1e-9)
    beyond = ratios.mean(0) - 1
    groups = [np.array([of(module) for module in modules]) for of in (kind_of, block)]
    same = [(group[:, None] == group).astype(float) for group in groups] + [np.eye(count)]
    best, expected = -np.inf, beyond
    for widths in product(CORRECTION_SPREADS, repeat=len(same)):
        signal = sum(width**2 * one for width, one in zip(widths, same, strict=True))
        lower = np.linalg.cholesky(signal + noise)
        whitened = np.linalg.solve(lower, beyond)
        evidence = -0.5 * whitened @ whitened - np.log(lower.diagonal()).sum()
        if evidence > best:
            best, expected = evidence, signal @ np.linalg.solve(lower.T, whitened)
    shrunk: Float64Array = 1 + expected
    return shrunk
