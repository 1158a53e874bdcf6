"""Mean KL divergence from a teacher as a loss: differentiable in what weights are made of.

Letters: N windows, L tokens in a window, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as recompute

from bitquilt.metrics.teacher import Teacher
from bitquilt.models.blockwise import BlockwiseModel, embedding_scale, logit_tokens
from bitquilt.models.checkpoint import EMBEDDING


def reproducible_gradients(device: torch.device) -> AbstractContextManager[None]:
    """Within, gradients are the same every time: CUDA's faster attention adds up in any order."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else nullcontext()


def kl_loss(model: BlockwiseModel, teacher: Teacher) -> Tensor:
    """Mean KL(teacher ‖ model) in nats per token, differentiable in what the weights came from.

    Backward computes everything again but the hidden states between blocks, so that the decoded
    weights of one block, the table, and the logits of a few tokens are in memory at once.
    """
    checkpoint = model.checkpoint
    table = _recomputed(model.weights, f"{EMBEDDING}.weight")
    hidden = F.embedding(teacher.tokens.to(model.device), table)
    hidden = hidden * embedding_scale(checkpoint.config)
    for index in range(checkpoint.layers):
        hidden = _recomputed(model.through, index, hidden)
    hidden = model.final_norm(hidden)
    head = table if checkpoint.tied else _recomputed(model.head)
    at_once = logit_tokens(len(teacher.head))
    # [N, L, D] -> [T, D]
    pairs = zip(
        hidden.flatten(0, 1).split(at_once),
        teacher.hidden.flatten(0, 1).split(at_once),
        strict=True,
    )
    sums = [_recomputed(_summed_kl, own, head, theirs, teacher.head) for own, theirs in pairs]
    return torch.stack(sums).sum() / teacher.tokens.numel()


def _summed_kl(hidden: Tensor, head: Tensor, theirs: Tensor, their_head: Tensor) -> Tensor:
    """KL summed over tokens [T, D], given both heads [V, D]."""
    log_q, logits = (hidden @ head.T).log_softmax(-1), theirs @ their_head.T
    return (logits.softmax(-1) * (logits.log_softmax(-1) - log_q)).sum()


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function's result; what led to it is forgotten, and computed again for gradients."""
    result: Tensor = recompute(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
