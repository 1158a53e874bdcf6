"""Which tokens a model expects of a text: those that it has, and those that others like it have.

A text of a million tokens has most tokens of its language never or once. The model knows them: its
probabilities of the next token, summed over a few thousand places, say of each token how often it
would come in endless text like this.

Letters: N windows, L tokens in a window, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitquilt.metrics.kl import logits
from bitquilt.models.blockwise import Advance, BlockwiseModel
from bitquilt.models.checkpoint import Checkpoint


@torch.no_grad()
def expected_shares(checkpoint: Checkpoint, tokens: Tensor, advance: Advance) -> Tensor:
    """Give the share of each token in text like some windows, by the model's own probabilities.

    Args:
        checkpoint: the model.
        tokens: the windows, int64 [N, L].
        advance: is told of tokens × weights as they are done.

    Returns:
        float64 [V], whose sum is 1.
    """
    model = BlockwiseModel(checkpoint)
    hidden, head = model.last_hidden(tokens, advance), model.head()
    total = torch.zeros(len(head), dtype=torch.float64, device=head.device)
    for some in logits(hidden, head):
        total += some.softmax(-1).sum(0)
        advance(len(some) * head.numel())
    return (total / total.sum()).cpu()
