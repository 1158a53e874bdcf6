"""Interactions: what each matrix adds to the KL of a whole allocation.

A prediction (:mod:`.sensitivity`) is about one matrix rounded and all others exact. Errors meet,
though: predictions add up to less than half of an allocation's KL, and to a quarter below 3 bits.
To second order KL is a quadratic form of all errors together, so that KL = ½ Σ_m ⟨∂KL/∂W_m, ΔW_m⟩
(Euler), and the term of a matrix, its attribution, holds half of what it has in common with every
other. One backward pass gives the attributions of all. An attribution over its prediction is the
correction of that matrix's scores, on every type.

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
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.allocation.sensitivity import block
from bitquilt.allocation.solver import solve
from bitquilt.allocation.space import AllocationSpace, Float64Array
from bitquilt.errors import UserError
from bitquilt.metrics.kl_loss import kl_loss, reproducible_gradients
from bitquilt.metrics.teacher import OTHER_TYPES, Teacher
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import kind_of
from bitquilt.qtypes.qtype import Allocation, PackedSource
from bitquilt.runtime.progress import Progress

ATTRIBUTION_BATCH = 2
"""Windows whose attributions are one sample."""
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
        attribution: measures an allocation, as :func:`kl_attribution` does.
    """
    logs = []
    for capacity in dict.fromkeys(capacities):
        vector = solve(space, capacity)
        predicted = [own[index] for own, index in zip(space.scores, vector, strict=True)]
        samples = attribution(space.allocation(vector))
        corrections = sensitivity_corrections(samples, np.array(predicted), space.modules)
        logs.append(np.log(corrections))
    return space.scaled(np.exp(np.mean(logs, axis=0)))


def kl_attribution(
    checkpoint: Checkpoint,
    allocation: Allocation,
    packed: PackedSource,
    teacher: Teacher,
    progress: Progress,
) -> Float64Array:
    """Return what each matrix adds to the KL of an allocation, in nats per token.

    Args:
        checkpoint: the original.
        allocation: the type of every matrix.
        packed: the rounded matrices.
        teacher: the original on some text.
        progress: advances after each batch.

    Returns:
        [B, M], matrices in the order of the allocation.

    Raises:
        UserError: one is NaN or infinite.
    """
    model = BlockwiseModel(checkpoint)
    stretch = {m: torch.zeros((), device=model.device, requires_grad=True) for m in allocation}
    """How much longer an error is made; the KL's slope there is ⟨∂KL/∂W, ΔW⟩."""

    def weight(name: str) -> Tensor:
        exact, module = checkpoint.load(name).to(model.device), name.removesuffix(".weight")
        if module not in allocation:
            return exact
        qtype = allocation[module]
        parts = {part: tensor.to(model.device) for part, tensor in packed(module, qtype).items()}
        rounded = qtypes.get(qtype).dequantize(parts)
        return rounded + stretch[module] * (rounded - exact)

    model.weights = weight
    found = []
    for start in range(0, len(teacher.tokens), ATTRIBUTION_BATCH):
        batch = teacher.windows(slice(start, start + ATTRIBUTION_BATCH))
        with reproducible_gradients(model.device):
            slopes = torch.autograd.grad(kl_loss(model, batch), list(stretch.values()))
        found.append([0.5 * float(slope) for slope in slopes])
        if not np.isfinite(found[-1]).all():
            broken = next(m for m, own in zip(stretch, found[-1], strict=True) if not isfinite(own))
            raise UserError(
                f"{checkpoint.name} computes NaN or infinity once its matrices are quantized, for "
                f"example {broken} to {allocation[broken]}; {OTHER_TYPES}"
            )
        progress.advance()
    return np.array(found)


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
