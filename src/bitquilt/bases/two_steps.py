"""A model of transformers in two steps: text to last hidden states, and these to logits.

Hidden states of a whole text fit into memory and logits do not. What lies between the two, a head
or a cap on logits, is the model's own: it runs with hidden states in place of what it would
compute.

Letters: N windows of L tokens, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from bitquilt.bases.decoded_model import DecodedModel
from bitquilt.bases.deferred_stacks import moved_model
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.partners import Partner
from bitquilt.errors import UserError
from bitquilt.models.blockwise import Advance, batch_tokens, batches, ignore
from bitquilt.runtime.device import compute_device

TRIED_LOGITS = 8
"""On so many tokens it is tried whether two steps give the same as one."""
_SAME_LOGITS = 1e-4


class TwoStepModel:
    """A causal language model, or one that sees, in two steps."""

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        """Try both steps on the beginning of a text, where models are computed.

        Args:
            model: as :func:`bitquilt.bases.importance.load_transformers_model` gives it.
            tokens: int64 [N, L].

        Raises:
            UserError: the model makes logits of something else than its last hidden states.
        """
        self._model = cast("Any", moved_model(model, compute_device()))
        self._inner = _inner_of(self._model)
        self.device = next(model.parameters()).device
        self.vocabulary = len(self.head())
        """Logits of a token."""
        self.head_weights = self.head().numel()
        """Weights that a token's last hidden states are multiplied with."""
        all_weights = sum(one.numel() for one in model.parameters())
        self.weights = max(all_weights - self.head_weights, 1)
        """About how many weights a token is multiplied with up to there: all experts count."""
        self._output: dict[str, Any] = {}
        few, lent = tokens[:1, :TRIED_LOGITS], lent_weights(model)
        with torch.inference_mode():
            whole = lent.tried(lambda: self._run(few))
            try:
                read = self._inner(few.to(self.device), use_cache=False)
                self._kind, self._output = type(read), dict(read)
                parts = self.logits(read.last_hidden_state[0])
                same = torch.allclose(whole, parts, rtol=_SAME_LOGITS, atol=_SAME_LOGITS)
            except (AttributeError, RuntimeError, TypeError, ValueError):
                same = False
        if not same:
            raise UserError(
                f"transformers' {type(model).__name__} computes its logits from more than the last "
                "hidden states, which bitquilt cannot follow; compare a GGUF file with its base by "
                "`llama-perplexity --kl-divergence`"
            )

    def head(self) -> Tensor:
        """Return the matrix [V, D] that logits are made with, in the precision of the weights."""
        found: Tensor = self._model.get_output_embeddings().weight
        return found

    def with_file(
        self, partners: Mapping[str, Partner | None], decode: Callable[[str], Tensor]
    ) -> TwoStepFile:
        """Return what computes the same with a file's numbers.

        Args:
            partners: of the matrices of the file's base.
            decode: gives a matrix of the file, float32 [R, C] or [E, R, C].
        """
        return TwoStepFile(self, DecodedModel(self._model, partners, decode))

    @torch.inference_mode()
    def last_hidden(self, tokens: Tensor, advance: Advance = ignore) -> Tensor:
        """Return the last hidden states, float32 [N, L, D] on the CPU.

        Args:
            tokens: int64 [N, L].
            advance: is told of tokens × weights as they are read.
        """
        found = []
        for which in batches(tokens, batch_tokens(1)):  # each batch reads all experts again
            own = tokens[which]
            read = self._inner(own.to(self.device), use_cache=False)
            found.append(read.last_hidden_state.float().cpu())
            advance(own.numel() * self.weights)
        return torch.cat(found)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [T, V] of last hidden states [T, D]."""
        own = {**self._output, "last_hidden_state": hidden[None].to(self.device)}
        self._inner.forward = lambda *_, **__: self._kind(**own)
        try:
            return self._run(torch.zeros(1, len(hidden), dtype=torch.int64))
        finally:
            del self._inner.forward

    def _run(self, tokens: Tensor) -> Tensor:
        found: Tensor = self._model(tokens.to(self.device), use_cache=False).logits
        return found[0].float()


def _inner_of(model: Any) -> Any:
    """Return what computes a model's last hidden states."""
    inner = model.base_model
    # Llama 4's class calls it otherwise than it is called
    return getattr(model, "model", inner) if inner is model else inner


class TwoStepFile:
    """A file's numbers in transformers' model, which has its own again after each step."""

    def __init__(self, two: TwoStepModel, decoded: DecodedModel) -> None:
        self._two, self._decoded = two, decoded

    def last_hidden(self, tokens: Tensor, advance: Advance = ignore) -> Tensor:
        """See :meth:`TwoStepModel.last_hidden`."""
        with self._decoded:
            return self._two.last_hidden(tokens, advance)

    def logits(self, hidden: Tensor) -> Tensor:
        """See :meth:`TwoStepModel.logits`."""
        with self._decoded:
            return self._two.logits(hidden)
