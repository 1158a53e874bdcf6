"""The KL that a rounding error is predicted to cost, without a forward pass.

To second order, the KL divergence from the model to itself with weights W + ΔW is half the Fisher
form of ΔW. With the Fisher matrix of y = W x taken as the product of input and gradient moments
(K-FAC, Martens & Grosse 2015), and only the diagonal b of the gradients' kept, that is
½ Σ_r b_r ΔW_r H ΔW_rᵀ nats per token.

Letters: R outputs, C inputs, V vocabulary, D model width.
"""

from __future__ import annotations

from torch import Tensor


def matrix_kl(error: Tensor, hessian: Tensor, gradient: Tensor) -> Tensor:
    """Return ½ b_r ΔW_r H ΔW_rᵀ of each row, float64 [R], in nats per token; they add up.

    Args:
        error: ΔW [R, C], on any device.
        hessian: H, mean of x xᵀ [C, C]; or its diagonal [C] where columns are to count alone.
        gradient: b, mean of g² per output [R].
    """
    metric = hessian.to(error.device)
    per_row = ((error @ metric if metric.ndim == 2 else error * metric) * error).sum(1)
    return 0.5 * per_row.cpu().double() * gradient.double()


def embedding_kl(error: Tensor, tokens: Tensor, columns: Tensor) -> Tensor:
    """Return ½ f_v Σ_c g_c ΔW_vc² of each row, float64 [V]: its cost in what the first block reads.

    Args:
        error: ΔW [V, D], on any device.
        tokens: f, share of each token in the text [V].
        columns: g, mean of squared gradients at the table's output [D].
    """
    used = tokens.nonzero().flatten()
    per_row = error[used.to(error.device)].square() @ columns.to(error.device)
    found = tokens.double()
    found[used] *= 0.5 * per_row.cpu().double()
    return found
