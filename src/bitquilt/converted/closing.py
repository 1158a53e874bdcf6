"""What a file of any architecture loses: transformers with the numbers read back from it.

The original reads held-out text once and its last hidden states are kept. Logits of both exist for
a few tokens at a time.

Letters: N windows of L tokens, n tokens at once, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bitquilt.bases.partners import Partner
from bitquilt.bases.two_steps import TwoStepFile, TwoStepModel
from bitquilt.calibration.text import HeldOutText
from bitquilt.errors import EngineMissingError, NotFiniteError, UserError
from bitquilt.metrics.intervals import Documents
from bitquilt.metrics.kl import TokenFigures, compare_logits
from bitquilt.metrics.teacher import (
    HeldOutFigures,
    held_out_figures,
    require_finite,
    summarize,
    zero_divergence,
)
from bitquilt.models.blockwise import Advance, logit_tokens
from bitquilt.runtime.progress import Progress
from bitquilt.targets import Target
from bitquilt.targets.engine_check import EngineExcerpt

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
        self._text, self._two = text, TwoStepModel(model, text.tokens)
        with progress.stage("Reading held-out text", self._work, "closing text"):
            self._hidden = self._two.last_hidden(text.tokens, progress.advance)
            told = self._logits(self._two, self._hidden, progress.advance)
            name = f"{type(model).__name__}, unquantized,"
            found = self._compared(require_finite(told, name, ENGINE))
            self.original = self.figures(zero_divergence(found.correct, found.loss))

    def read(
        self,
        partners: Mapping[str, Partner | None],
        decode: Callable[[str], Tensor],
        name: str,
        progress: Progress,
    ) -> TokenFigures:
        """Let transformers read all of the text with a file's numbers.

        Args:
            partners: of the matrices of its base.
            decode: gives a matrix of the file, float32 [E, R, C].
            name: what errors call the file.
            progress: told of a stage.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        with progress.stage(f"Measuring {name}", self._work, "measuring"):
            student = self._two.with_file(partners, decode)
            hidden = student.last_hidden(self._text.tokens, progress.advance)
            told = self._logits(student, hidden, progress.advance)
            return self._compared(require_finite(told, name, ENGINE))

    def figures(self, found: TokenFigures) -> HeldOutFigures:
        """Return means with their intervals for each kind of text."""
        text = self._text
        return held_out_figures(found, ENGINE, text.tokens, text.owners, text.unlike)

    def in_engine(
        self, path: Path, target: Target, in_torch: TokenFigures
    ) -> tuple[EngineExcerpt | None, str]:
        """Run a file in its engine, in a process of its own, on an excerpt of the text.

        Where it computes something else than transformers does with the same numbers, that is
        said, and the file stays: the engine's code of the architecture is another.

        Args:
            path: the file.
            target: its format.
            in_torch: what :meth:`read` gave of it.

        Returns:
            Its figures there and in transformers, and a sentence about them; no figures, and why,
            where the engine is not installed or cannot run the file, which a newer one may.

        Raises:
            NotFiniteError: a logit is NaN or infinite.
        """
        windows, length = target.check_excerpt
        tokens, owners = (one[:windows, :length] for one in (self._text.tokens, self._text.owners))
        try:
            with target.open_engine(path) as engine:
                read = engine.logits(tokens.numpy())
                # files may have more tokens than the model
                told = (torch.from_numpy(one)[:, : self._two.vocabulary] for one in read)
                found = self._compared(require_finite(told, path.name, target.engine), tokens)
        except EngineMissingError as missing:
            return None, f"not run: {missing}"
        except NotFiniteError:
            raise
        except UserError as error:
            return None, f"{target.engine} cannot run it: {error}"
        documents = Documents.of(owners[:, 1:].ravel().numpy())
        excerpt = EngineExcerpt(
            in_engine=summarize(found, target.engine, documents),
            in_torch=summarize(in_torch.first(*tokens.shape), ENGINE, documents),
        )
        return excerpt, _judged(excerpt, target)

    @property
    def _work(self) -> int:
        """The tokens × weights of all of the text."""
        return self._text.tokens.numel() * (self._two.weights + self._two.head_weights)

    def _logits(
        self, model: TwoStepModel | TwoStepFile, hidden: Tensor, advance: Advance
    ) -> Iterator[Tensor]:
        """Yield logits [n, V] of hidden states [N, L, D], of the original or of a file."""
        for window in hidden:
            for some in window.split(logit_tokens(self._two.vocabulary)):
                yield model.logits(some)
                advance(len(some) * self._two.head_weights)

    @torch.no_grad()
    def _compared(self, student: Iterator[Tensor], tokens: Tensor | None = None) -> TokenFigures:
        """Compare logits on all of the text, or on the beginning of it."""

        def teacher(row: int, part: slice) -> Tensor:
            return self._two.logits(self._hidden[row, part])

        return compare_logits(self._text.tokens if tokens is None else tokens, teacher, student)


def _judged(excerpt: EngineExcerpt, target: Target) -> str:
    """Say what an engine makes of a file."""
    there, here = excerpt.in_engine, excerpt.in_torch
    said = (
        f"{target.engine} runs it; on {there.tokens:,} of the tokens its excerpt KL is "
        f"{there.kl.mean:.3g} nats/token there and {here.kl.mean:.3g} in transformers"
    )
    most = excerpt.usual(target)
    why = f"since {target.engine} {target.engine_rounds}"
    if abs(excerpt.difference) <= most:
        return f"{said}; the difference is as usual, {why}"
    return (
        f"{said}, where at most {most:.2g} are usual, {why}: its code of this architecture "
        "computes something else, with any file of this model"
    )
