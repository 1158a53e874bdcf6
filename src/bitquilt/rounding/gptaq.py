"""GPTAQ's asymmetric calibration: what a matrix should be once those before it are rounded.

Rounding upstream turns a matrix's input x into x̂, and the residual stream h that its output is
added to into ĥ. The rounded matrix V is then wanted to give V x̂ = W x + (h − ĥ): the output of the
full-precision model and, where it is added to the stream, what the stream lacks. In least squares
V = W + S Ĥ⁻¹, with Ĥ = E[x̂ x̂ᵀ], S = W E[(x − x̂) x̂ᵀ] + E[(h − ĥ) x̂ᵀ], and tokens counted as those
of the bank's Hessians are. The term of x − x̂ is that of GPTAQ (Li et al. 2025) and Qronos (Zhang et
al. 2025).

The text is a sample: of S Ĥ⁻¹, as much is added as two halves of the text agree on.

Letters: T tokens, R rows of a matrix, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bitquilt.calibration.shrinkage import shrink_
from bitquilt.rounding.hessian import Factor
from bitquilt.rounding.output_feedback import OutputFactor


@dataclass(frozen=True)
class Drift:
    """How one input and the residual stream differ between two models, summed over tokens.

    Each token counts for its weight w, as in the original's own Hessian.
    """

    hessian: Tensor
    """Σ w x̂ x̂ᵀ, [C, C]."""
    inputs: Tensor
    """Σ w (x − x̂) x̂ᵀ, [C, C]."""
    stream: Tensor
    """Σ w (h − ĥ) x̂ᵀ, [R, C]; zero where the output is not what is added to the stream."""
    weight: float
    """Σ w."""
    kept: float = 1.0
    """What the bank left of the off-diagonals of its Hessian, where other text disagreed."""

    @classmethod
    def of(
        cls, original: Tensor, quantized: Tensor, lacking: Tensor, weights: Tensor, kept: float
    ) -> Drift:
        """Sum over a few tokens.

        Args:
            original: x, [T, C].
            quantized: x̂, [T, C].
            lacking: h − ĥ, [T, R].
            weights: w, [T].
            kept: the share of off-diagonals.
        """
        weighted = quantized * weights.unsqueeze(1)
        return cls(
            quantized.T @ weighted,
            (original - quantized).T @ weighted,
            lacking.T @ weighted,
            float(weights.double().sum()),
            kept,
        )

    def __add__(self, other: Drift) -> Drift:
        return Drift(
            self.hessian + other.hessian,
            self.inputs + other.inputs,
            self.stream + other.stream,
            self.weight + other.weight,
            self.kept,
        )

    @property
    def second_moment(self) -> Tensor:
        """The second moment Ĥ of the quantized model's inputs, [C, C]."""
        return shrink_(self.hessian / self.weight, 1 - self.kept)

    def shift(self, weight: Tensor) -> Tensor:
        """Return S, [R, C]: E[(what V = W leaves wanting) x̂ᵀ]."""
        return (weight @ self.inputs + self.stream) / self.weight

    def excess(self, error: Tensor, weight: Tensor, outputs: OutputFactor | None) -> float:
        """Return how much more E‖W x + (h − ĥ) − V x̂‖² is with V = W + error than with V = W.

        The norm is that of the second moment of the output's gradients, where it is known.

        Args:
            error: V − W, [R, C].
            weight: W, [R, C].
            outputs: of the output's gradients.
        """
        gradient = error @ self.second_moment - 2 * self.shift(weight)
        if outputs is not None:
            gradient, error = outputs.moment @ gradient[outputs.order], error[outputs.order]
        return float((gradient * error).sum())


def corrected(weight: Tensor, halves: tuple[Drift, Drift], factor: Factor) -> Tensor:
    """Return the matrix [R, C] to round instead of W: W + ρ S (Ĥ + λ)⁻¹.

    λ is the damping of the factor, which pulls towards W; ρ is the correlation of what each half
    of the text asks for, S (Ĥ + λ)⁻¹ᐟ² (docs/decisions/sequential.md).

    Args:
        weight: W, [R, C].
        halves: moments over two halves of the text.
        factor: of Ĥ over all of it, the one input of the matrix.
    """
    one, other = (_whitened(half.shift(weight), factor) for half in halves)
    share = F.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp_min(0)
    whole = _whitened((halves[0] + halves[1]).shift(weight), factor)
    step: Tensor = torch.linalg.solve_triangular(factor.upper.mT, whole, upper=False)
    return weight + share * factor.restored(step)[0].T


def _whitened(shift: Tensor, factor: Factor) -> Tensor:
    """Return U⁻¹ Sᵀ, [1, C, R] in the factor's order, for Ĥ + λ = U Uᵀ."""
    columns = factor.ordered(shift.T.unsqueeze(0))
    white: Tensor = torch.linalg.solve_triangular(factor.upper, columns, upper=True)
    return white
