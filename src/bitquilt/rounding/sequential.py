"""What a matrix should be once the matrices before it are rounded: asymmetric calibration.

Rounding upstream turns a matrix's input x into x̂, and the residual stream h that its output is
added to into ĥ. The rounded matrix V is then wanted to give V x̂ = W x + (h − ĥ): the output of the
full-precision model and, where it is added to the stream, what the stream lacks. In least squares
V = W + S Ĥ⁻¹, with Ĥ = E[x̂ x̂ᵀ] and S = W E[(x − x̂) x̂ᵀ] + E[(h − ĥ) x̂ᵀ]. The term of x − x̂ is
that of GPTAQ (Li et al. 2025) and Qronos (Zhang et al. 2025).

Letters: T tokens, R rows of a matrix, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.rounding.factor import Factor

FRACTION = 0.5
"""Of the correction, that is made: the text is a sample (docs/decisions/refining.md)."""


@dataclass
class Drift:
    """How one input and the residual stream drift apart in two models, summed over tokens."""

    hessian: Tensor
    """Σ x̂ x̂ᵀ, [C, C]."""
    inputs: Tensor
    """Σ (x − x̂) x̂ᵀ, [C, C]."""
    stream: Tensor | None
    """Σ (h − ĥ) x̂ᵀ, [R, C]; None where the output is not what is added to the stream."""
    tokens: int

    @classmethod
    def of(cls, original: Tensor, quantized: Tensor, lacking: Tensor | None) -> Drift:
        """The sums over a few tokens.

        Args:
            original: x, [T, C].
            quantized: x̂, [T, C].
            lacking: h − ĥ, [T, R].
        """
        return cls(
            quantized.T @ quantized,
            (original - quantized).T @ quantized,
            None if lacking is None else lacking.T @ quantized,
            len(quantized),
        )

    def __iadd__(self, other: Drift) -> Drift:
        self.hessian += other.hessian
        self.inputs += other.inputs
        if self.stream is not None and other.stream is not None:
            self.stream += other.stream
        self.tokens += other.tokens
        return self

    @property
    def second_moment(self) -> Tensor:
        """Ĥ, [C, C]."""
        return self.hessian / self.tokens

    def shift(self, weight: Tensor) -> Tensor:
        """S, [R, C]: E[(what V = W leaves wanting) x̂ᵀ]."""
        total = weight @ self.inputs
        return (total if self.stream is None else total + self.stream) / self.tokens

    def excess(self, error: Tensor, weight: Tensor) -> float:
        """How much more E‖W x + (h − ĥ) − V x̂‖² is with V = W + error than with V = W.

        Args:
            error: V − W, [R, C].
            weight: W, [R, C].
        """
        gradient = error @ self.second_moment - 2 * self.shift(weight)
        return float((gradient * error).sum())


def corrected(weight: Tensor, shift: Tensor, factor: Factor) -> Tensor:
    """The matrix [R, C] to round: W + FRACTION · S (Ĥ + λ)⁻¹.

    λ is the damping of the factor, which pulls towards W.

    Args:
        weight: W, [R, C].
        shift: S, [R, C].
        factor: of Ĥ.
    """
    # (Ĥ + λ) Xᵀ = Sᵀ with Ĥ + λ = U Uᵀ, columns in the factor's order
    half = torch.linalg.solve_triangular(factor.upper, factor.ordered(shift.T), upper=True)
    whole = torch.linalg.solve_triangular(factor.upper.T, half, upper=False)
    return weight + FRACTION * factor.restored(whole).T
