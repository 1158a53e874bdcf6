"""How close a written file is to the original, measured from the file itself on held-out text.

Letters: N windows, L tokens in a window, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.text import KINDS
from bitquilt.errors import NotFiniteError
from bitquilt.metrics.intervals import Documents, exponential, through
from bitquilt.metrics.kl import Estimate, TokenFigures, compare_logits, logits
from bitquilt.models.blockwise import Advance, BlockwiseModel, ignore, logit_tokens
from bitquilt.models.checkpoint import Checkpoint
from bitquilt.runtime.malloc import trim


@dataclass(frozen=True)
class Teacher:
    """The full-precision model on one text: its last hidden states, never its logits."""

    tokens: Tensor
    """int64 [N, L]."""
    hidden: Tensor
    """[N, L, D]."""
    head: Tensor
    """[V, D]."""
    owners: Tensor | None = None
    """The number of the document that each token is from [N, L]; None where nobody asks for
    intervals, or every window is a document of its own."""
    own_logits: Callable[[Tensor], Tensor] | None = None
    """What the model makes logits [T, V] of hidden states [T, D] with; None where it is the
    head alone."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Give the logits [T, V] of hidden states [T, D]."""
        return hidden @ self.head.T if self.own_logits is None else self.own_logits(hidden)

    def windows(self, which: slice) -> Teacher:
        """Give the teacher on some of the windows."""
        return self._part((which,))

    def first(self, windows: int, tokens: int) -> Teacher:
        """Give the teacher on the first tokens of the first windows."""
        return self._part((slice(windows), slice(tokens)))

    def _part(self, part: tuple[slice, ...]) -> Teacher:
        owners = None if self.owners is None else self.owners[part]
        return replace(self, tokens=self.tokens[part], hidden=self.hidden[part], owners=owners)

    @property
    def documents(self) -> Documents:
        """The document of each predicted token, N · (L − 1) of them."""
        return _documents(self.tokens, self.owners)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a model is like on one held-out text; intervals are 95 %."""

    kl: Estimate
    """KL(original ‖ this), nats per token."""
    agreement: Estimate
    """Share of tokens where both prefer the same next token."""
    perplexity: Estimate
    engine: str
    """What computed it."""
    tokens: int
    """Predicted tokens that the means are over."""
    documents: int
    """The number of documents that they are from."""


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures:
    """What a model is like on held-out text of two kinds; at least one of them was read."""

    unlike: Figures | None
    """On domains that the calibration text has none of: what people will use the model on."""
    like: Figures | None
    """On other documents of the domains of the calibration text."""

    @property
    def kinds(self) -> dict[str, Figures]:
        """Give the kinds that were read, ``unlike`` first."""
        both = zip(KINDS, (self.unlike, self.like), strict=True)
        return {kind: figures for kind, figures in both if figures is not None}

    @property
    def headline(self) -> Figures:
        """Give the figures that files are compared by: those on unlike text, if it was read."""
        return next(iter(self.kinds.values()))


@dataclass(frozen=True)
class ClosingTeacher:
    """The full-precision model on the text of the closing figures."""

    teacher: Teacher
    unlike: int
    """How many of its windows, the first ones, are unlike the calibration text."""

    def figures(self, found: TokenFigures, engine: str) -> HeldOutFigures:
        """Means with their intervals for each kind of text, of a model's figures on all of it."""
        tokens, owners = self.teacher.tokens, self.teacher.owners
        return held_out_figures(found, engine, tokens, owners, self.unlike)

    def original_figures(self) -> HeldOutFigures:
        """Figures of the original itself: its perplexity, and a divergence of zero."""
        correct, loss, _ = self_metrics(self.teacher).numpy()
        return self.figures(zero_divergence(correct, loss), "torch")


def held_out_figures(
    found: TokenFigures, engine: str, tokens: Tensor, owners: Tensor | None, unlike: int
) -> HeldOutFigures:
    """Means with their intervals for each kind of text.

    Args:
        found: a model's figures on all of it.
        engine: what computed them.
        tokens: int64 [N, L].
        owners: the number of the document that each token is from [N, L]; None where every window
            is one of its own.
        unlike: how many of the windows, the first ones, are unlike the calibration text.
    """

    def of(windows: slice) -> Figures | None:
        own = None if owners is None else owners[windows]
        if not len(tokens[windows]):
            return None
        return summarize(found.windows(windows), engine, _documents(tokens[windows], own))

    return HeldOutFigures(unlike=of(slice(unlike)), like=of(slice(unlike, None)))


def _documents(tokens: Tensor, owners: Tensor | None) -> Documents:
    """Give the document of each predicted token of windows [N, L]."""
    if owners is not None:
        return Documents.of(owners[:, 1:].ravel().numpy())
    windows, length = tokens[:, 1:].shape
    return Documents.of(np.repeat(np.arange(windows), length))


def weights_metrics(
    teacher: Teacher,
    checkpoint: Checkpoint,
    weights: Callable[[str], Tensor],
    name: str = "the model",
    advance: Advance = ignore,
) -> TokenFigures:
    """The model with other weights, those of a written file say, token by token.

    Args:
        teacher: the original on the held-out windows.
        checkpoint: the model's shape.
        weights: canonical tensor name → float32 tensor.
        name: what errors call the model, its file say.
        advance: is told of tokens × weights as they are done, those of both heads too.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    student = BlockwiseModel(checkpoint, weights)
    hidden = student.last_hidden(teacher.tokens, advance)
    trim()  # logits come in blocks of other sizes than hidden states

    def told() -> Iterator[Tensor]:
        for tokens in logits(hidden, student.head()):
            advance(2 * len(tokens) * teacher.head.numel())
            yield tokens

    return token_metrics(teacher, require_finite(told(), name, "torch"))


OTHER_TYPES = (
    "quantize with other types, for example --recipe=Q8_0, and report this model if that fails too"
)
"""What to do about a quantized model that computes NaN or infinity."""


def require_finite(
    student: Iterator[Tensor], name: str, engine: str, remedy: str = OTHER_TYPES
) -> Iterator[Tensor]:
    """Pass on logits [n, V] of consecutive tokens; NaN or infinity in any of them is an error.

    No comparison catches them: each is false with NaN.

    Raises:
        NotFiniteError: the sentence names the model, the engine and the token.
    """
    seen = 0
    for tokens in student:
        if not torch.isfinite(tokens.sum()) and not (finite := torch.isfinite(tokens)).all():
            first = seen + int((~finite).any(-1).nonzero()[0])
            raise NotFiniteError(
                f"{name}: {engine} computes NaN or infinity at token {first} of the text, usually "
                f"because 16-bit numbers overflow; {remedy}"
            )
        seen += len(tokens)
        yield tokens


@torch.no_grad()
def token_metrics(teacher: Teacher, student: Iterator[Tensor]) -> TokenFigures:
    """Any model's logits on the teacher's text, as :func:`compare_logits` takes them."""

    def original(row: int, part: slice) -> Tensor:
        return teacher.logits(teacher.hidden[row, part])

    return compare_logits(teacher.tokens, original, student)


def summarize(found: TokenFigures, engine: str, documents: Documents) -> Figures:
    """Means with their intervals over the documents that the tokens are from."""
    return Figures(
        kl=documents.positive(found.kl.ravel()),
        agreement=documents.share(found.agreement.ravel()),
        perplexity=through(documents.positive(found.loss.ravel()), exponential),
        engine=engine,
        tokens=found.kl.size,
        documents=len(documents.stratum),
    )


def zero_divergence(correct: NDArray[np.float32], loss: NDArray[np.float32]) -> TokenFigures:
    """Figures of the original compared with itself."""
    zero = np.zeros_like(loss)
    return TokenFigures(zero, zero + 1, correct, loss)


@torch.no_grad()
def self_metrics(teacher: Teacher, advance: Advance = ignore) -> Tensor:
    """Whether it prefers the true next token, its loss there and its entropy, [3, N, L − 1].

    ``advance`` is told of tokens × weights of the head as they are done.
    """
    found = torch.empty(3, *teacher.tokens[:, 1:].shape)
    at_once = logit_tokens(len(teacher.head))
    for row, (hidden, tokens) in enumerate(zip(teacher.hidden, teacher.tokens, strict=True)):
        parts = [
            _alone(teacher.logits(h), labels.to(h.device))
            for h, labels in zip(hidden[:-1].split(at_once), tokens[1:].split(at_once), strict=True)
        ]
        found[:, row] = torch.cat(parts, 1).cpu()
        advance(len(tokens) * teacher.head.numel())
    return found


def _alone(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the three figures for logits [T, V] and the tokens that came [T]; [3, T]."""
    log_p = logits.log_softmax(-1)
    entropy = -torch.linalg.vecdot(logits.softmax(-1), log_p)
    loss = -log_p.gather(-1, labels[:, None])[:, 0]
    return torch.stack([(logits.argmax(-1) == labels).float(), loss, entropy])
