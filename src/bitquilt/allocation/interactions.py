"""Scores in company: what each matrix adds to the KL of a whole mix.

A prediction (:mod:`.sensitivity`) is about one matrix rounded and all others exact. Errors meet,
though: predictions add up to less than half of a mix's KL, and to a quarter below 3 bits. To second
order KL is a quadratic form of all errors together, so that KL = ½ Σ_m ⟨∂KL/∂W_m, ΔW_m⟩ (Euler),
and the term of a matrix, its share, holds half of what it has in common with every other. One
backward pass gives the shares of all. A share over its prediction is the factor of that matrix, on
every type.

On a few windows most shares are known to a third at best. So factors are Gaussian around one common
factor, with what matrices of one kind, of one block, and what each alone has beside it; how wide
those three are is what gives the largest evidence, given the noise that batches show: of each
matrix, since an embedding's share is known well, moderated by the usual one (Smyth 2004).

Letters: B batches of text, M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from bitquilt import qtypes
from bitquilt.allocation.sensitivity import block
from bitquilt.allocation.space import AllocationSpace, Float64Array
from bitquilt.metrics.kl_loss import kl_loss, reproducible_gradients
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.blockwise import BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.models.names import kind_of
from bitquilt.qtypes.qtype import PackedSource
from bitquilt.runtime.progress import Progress

ATTRIBUTION_BATCH = 2
"""Windows whose shares are one sample."""
PASSES = 4
"""What a window costs in forwards: there, there again for the gradients, and back."""
CORRECTION_SPREADS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Standard deviations of factors, relative to the common one, among which the evidence chooses."""
USUAL = 2
"""Batches that the usual noise counts for beside those that show a matrix's own."""
BOUNDS = (0.2, 5.0)
"""A factor over the common one, at least and at most."""


def corrected_scores(
    mixes: AllocationSpace,
    capacities: Sequence[int],
    kl_attribution: Callable[[Mapping[str, str]], Float64Array],
) -> AllocationSpace:
    """The mixes with scores as matrices cost in company, averaged over the budgets.

    Args:
        mixes: scored by predictions.
        capacities: bytes that the matrices may take.
        kl_attribution: measures a mix.
    """
    logs = []
    for capacity in dict.fromkeys(capacities):
        mix = mixes.solve(mixes.scores, capacity, {})
        predicted = [own[index] for own, index in zip(mixes.scores, mix, strict=True)]
        found = sensitivity_corrections(
            kl_attribution(mixes.qtypes(mix)), np.array(predicted), mixes.modules
        )
        logs.append(np.log(found))
    return mixes.scaled(np.exp(np.mean(logs, axis=0)))


def kl_attribution(
    checkpoint: Checkpoint,
    mix: Mapping[str, str],
    packed: PackedSource,
    teacher: Teacher,
    progress: Progress,
) -> Float64Array:
    """The share of each matrix in the KL of a mix, nats per token.

    Args:
        checkpoint: the original.
        mix: module path → type name, for every matrix.
        packed: the rounded matrices.
        teacher: the original on some text.
        progress: advances after each batch.

    Returns:
        [B, M], matrices in the order of the mix.
    """
    model = BlockwiseModel(checkpoint)
    stretch = {m: torch.zeros((), device=model.device, requires_grad=True) for m in mix}
    """How much longer an error is made; the KL's slope there is ⟨∂KL/∂W, ΔW⟩."""

    def weight(name: str) -> Tensor:
        exact, module = checkpoint.load(name).to(model.device), name.removesuffix(".weight")
        if module not in mix:
            return exact
        parts = {
            part: tensor.to(model.device) for part, tensor in packed(module, mix[module]).items()
        }
        rounded = qtypes.get(mix[module]).dequantize(parts)
        return rounded + stretch[module] * (rounded - exact)

    model.weights = weight
    found = []
    for start in range(0, len(teacher.tokens), ATTRIBUTION_BATCH):
        batch = teacher.windows(slice(start, start + ATTRIBUTION_BATCH))
        with reproducible_gradients(model.device):
            slopes = torch.autograd.grad(kl_loss(model, batch), list(stretch.values()))
        found.append([0.5 * float(slope) for slope in slopes])
        progress.advance()
    return np.array(found)


def sensitivity_corrections(
    samples: Float64Array, predicted: Float64Array, modules: Sequence[str]
) -> Float64Array:
    """What the predictions of each matrix are to be multiplied by [M].

    Args:
        samples: shares [B, M], of at least two batches.
        predicted: what the same matrices of the same mix cost alone [M].
        modules: their paths.
    """
    known = predicted > 0  # an exact matrix has neither a share nor an error
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
    """The expected ratio of each matrix [M], given samples [B, M] around 1."""
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
