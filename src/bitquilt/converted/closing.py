"""What a file of any architecture loses: transformers with the numbers read back from it.

The original reads held-out text once and its last hidden states are kept. Logits of both exist for
a few tokens at a time.

Letters: N windows of L tokens, n tokens at once, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bitquilt.bases.decoded_model import DecodedModel
from bitquilt.bases.partners import Partner
from bitquilt.bases.two_steps import TwoStepModel
from bitquilt.calibration.text import HeldOutText
from bitquilt.metrics.kl import TokenFigures, compare_logits
from bitquilt.metrics.teacher import (
    HeldOutFigures,
    held_out_figures,
    require_finite,
    zero_divergence,
)
from bitquilt.models.blockwise import Advance, logit_tokens
from bitquilt.runtime.progress import Progress

ENGINE = "torch"


class BaseClosing:
    """The original on held-out text, beside which files are measured."""

    original: HeldOutFigures
    """Its own perplexity, and a KL of zero."""

    def __init__(self, model: nn.Module, text: HeldOutText, progress: Progress) -> None:
        """Let the original read.

        Args:
            model: as :func:`bitquilt.bases.importance.load_transformers_model` gives it.
            text: held out.
            progress: told of a stage.

        Raises:
            UserError: the model's logits are not made of its last hidden states, or are NaN.
        """
        self._model, self._text = model, text
        with progress.stage("Reading held-out text", 2 * text.tokens.numel(), "closing text"):
            self._two = TwoStepModel(model, text.tokens)
            self._hidden = self._two.last_hidden(text.tokens, progress.advance)
            told = self._logits(self._hidden, progress.advance)
            name = f"{type(model).__name__}, unquantized,"
            found = self._compared(require_finite(told, name, ENGINE))
            self.original = self._figures(zero_divergence(found.correct, found.loss))

    def figures(
        self,
        partners: Mapping[str, Partner | None],
        decode: Callable[[str], Tensor],
        name: str,
        progress: Progress,
    ) -> HeldOutFigures:
        """Measure a file.

        Args:
            partners: of the matrices of its base.
            decode: gives a matrix of the file, float32 [E, R, C].
            name: what errors call the file.
            progress: told of a stage.

        Raises:
            UserError: a logit is NaN or infinite.
        """
        with progress.stage(f"Measuring {name}", 2 * self._text.tokens.numel(), "measuring"):
            student = DecodedModel(self._model, partners, decode)
            with student:
                hidden = self._two.last_hidden(self._text.tokens, progress.advance)
            told = self._logits(hidden, progress.advance, student)
            return self._figures(self._compared(require_finite(told, name, ENGINE)))

    def _logits(
        self, hidden: Tensor, advance: Advance, student: DecodedModel | None = None
    ) -> Iterator[Tensor]:
        """Yield logits [n, V] of hidden states [N, L, D], of the original or of a file."""
        at_once = logit_tokens(self._two.vocabulary)
        for window in hidden:
            for some in window.split(at_once):
                with student or nullcontext():
                    found = self._two.logits(some)
                yield found
                advance(len(some))

    @torch.no_grad()
    def _compared(self, student: Iterator[Tensor]) -> TokenFigures:
        def teacher(row: int, part: slice) -> Tensor:
            return self._two.logits(self._hidden[row, part])

        return compare_logits(self._text.tokens, teacher, student)

    def _figures(self, found: TokenFigures) -> HeldOutFigures:
        text = self._text
        return held_out_figures(found, ENGINE, text.tokens, text.owners, text.unlike)
