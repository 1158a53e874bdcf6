"""The full-precision model of one run: it reads each text once and keeps its hidden states.

Letters: N windows, L tokens in a window, D model width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import Tensor

from bitquilt.bases.two_steps import TwoStepModel
from bitquilt.errors import UserError
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.blockwise import Advance, BlockwiseModel, ignore
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.malloc import trim
from bitquilt.runtime.workdir import WorkDir


class OriginalModel:
    """The checkpoint as it is, in float32, with what it made of texts in a work directory."""

    def __init__(
        self, checkpoint: Checkpoint, work: WorkDir, two: TwoStepModel | None = None
    ) -> None:
        """``two`` is what transformers makes of a model that bitquilt has no tables of."""
        self.checkpoint = checkpoint
        self.work = work
        self._model = two or BlockwiseModel(checkpoint)
        self._logits = None if two is None else two.logits

    @cached_property
    def head(self) -> Tensor:
        """The output matrix [V, D], of canonical models float32; every text shares it."""
        return self._model.head()

    def on(
        self, tokens: Tensor, owners: Tensor | None = None, advance: Advance = ignore
    ) -> Teacher:
        """Read windows of tokens, or take what an earlier run left of the same windows.

        Args:
            tokens: int64 [N, L].
            owners: the number of the document that each token is from, for intervals.
            advance: is told of tokens × weights as they are done.

        Raises:
            UserError: the model computes NaN, or the kept hidden states are of other tokens than
                their name says.
        """
        artefact = f"teacher/{tokens_key(tokens)}"
        if not self.work.has(artefact):
            hidden = self._model.last_hidden(tokens, advance)
            if not torch.isfinite(hidden).all():
                raise UserError(
                    f"{self.checkpoint.name} itself computes NaN or infinity; its weights are "
                    "damaged or overflow float32: download it again"
                )
            self.work.save(artefact, {"tokens": tokens, "hidden": hidden.cpu()}, {})
            del hidden
            trim()  # what comes next, tables and logits mostly, has blocks of other sizes
        kept = self.work.load(artefact)
        if not torch.equal(kept["tokens"], tokens):
            raise UserError(
                f"{self.work.path / artefact}.safetensors was made from other text than its name "
                "says; remove it and give the same command again"
            )
        hidden = kept["hidden"].to(self._model.device)
        return Teacher(tokens, hidden, self.head, owners, self._logits)


def tokens_key(tokens: Tensor) -> str:
    """Return a name for windows of tokens [N, L]: equal windows have equal names."""
    digest = hashlib.sha256(repr(tuple(tokens.shape)).encode())
    digest.update(tokens.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
