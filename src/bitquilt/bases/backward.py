"""Gradients of labels that a model samples itself, and the way back from them.

Letters: L tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitquilt.calibration.collect import sample
from bitquilt.errors import UserError

LOGITS_AT_ONCE = 64
"""Tokens whose labels are sampled at once: a vocabulary is large."""


def back_from_labels(model: nn.Module, window: Tensor, logits: Tensor) -> None:
    """Sample a label of each token, and take −log p of it back.

    Args:
        model: that the logits are from.
        window: the tokens, int64 [L]; the same labels are drawn for the same ones.
        logits: [1, L, V].

    Raises:
        UserError: the model's own code cannot be differentiated.
    """
    generator = torch.Generator().manual_seed(int(window.sum()))
    gradient = torch.empty_like(logits)
    for start in range(0, logits.shape[1], LOGITS_AT_ONCE):
        own = slice(start, start + LOGITS_AT_ONCE)
        p = logits.detach()[0, own].softmax(-1)
        label = sample(p, generator)
        gradient[0, own] = p.scatter_add(1, label, -torch.ones_like(p[:, :1]))
    go_back(model, logits, gradient)


def go_back(model: nn.Module, output: Tensor, gradient: Tensor) -> None:
    """Take the gradient of what a part of a model gave back to what that part read.

    Raises:
        UserError: the model's own code cannot be differentiated.
    """
    try:
        output.backward(gradient)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torch cannot differentiate {type(model).__name__}: {reason}; give --rounding=nearest"
        ) from error
