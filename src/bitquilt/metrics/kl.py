"""How far a model moved: KL divergence per token against the full-precision model.

Letters: N windows, L tokens in a window, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.models.blockwise import logit_tokens


@dataclass(frozen=True)
class TokenFigures:
    """One figure per predicted token, each [N, L − 1]."""

    kl: NDArray[np.float32]
    """KL(full precision ‖ candidate), nats."""
    agreement: NDArray[np.float32]
    """1 where both prefer the same next token."""
    correct: NDArray[np.float32]
    """1 where the candidate prefers the true next token."""
    loss: NDArray[np.float32]
    """−log p of the true next token under the candidate, nats."""

    def first(self, windows: int, tokens: int) -> TokenFigures:
        """Those of the first tokens of the first windows."""
        return self._part((slice(windows), slice(tokens - 1)))

    def windows(self, which: slice) -> TokenFigures:
        """Those of some of the windows."""
        return self._part((which,))

    def _part(self, part: tuple[slice, ...]) -> TokenFigures:
        return TokenFigures(*(getattr(self, f.name)[part] for f in fields(self)))


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; its ends are NaN where there is too little to tell them."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:.3g} (no interval)"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def compare(
    tokens: Tensor, teacher: Tensor, teacher_head: Tensor, student: Iterator[Tensor]
) -> TokenFigures:
    """Compare a candidate with the teacher's last hidden states, a few tokens at a time.

    Args:
        tokens: int64 [N, L].
        teacher: last hidden states [N, L, D] of the full-precision model.
        teacher_head: its output matrix [V, D].
        student: the candidate's logits [n, V] of consecutive tokens, as many at a time as whoever
            computes them likes, but of one window; those of its last token may be left out.
    """
    return compare_logits(tokens, lambda row, part: teacher[row, part] @ teacher_head.T, student)


def compare_logits(
    tokens: Tensor, teacher: Callable[[int, slice], Tensor], student: Iterator[Tensor]
) -> TokenFigures:
    """Compare a candidate with a teacher of whatever kind, a few tokens at a time.

    Args:
        tokens: int64 [N, L].
        teacher: gives the logits [n, V] of some tokens of a window.
        student: as :func:`compare` takes it.
    """
    predicted = tokens.shape[1] - 1
    # One array for all: small ones kept between the large logits would fragment the heap.
    found = np.empty((len(fields(TokenFigures)), *tokens[:, 1:].shape), np.float32)
    for row, window in enumerate(tokens):
        done = 0
        while done < predicted:
            given = next(student)[: predicted - done]
            for own in given.split(logit_tokens(given.shape[1])):
                part = slice(done, done + len(own))
                theirs, labels = teacher(row, part), window[1:][part]
                figures = _figures(theirs, own.to(theirs.device), labels.to(theirs.device))
                for column, kind in zip(found, figures, strict=True):
                    column[row, part] = kind.float().cpu().numpy()
                done = part.stop
    return TokenFigures(*found)


def _figures(teacher: Tensor, student: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The fields of :class:`TokenFigures`, each [T], of logits [T, V]."""
    preferred = student.argmax(-1)
    p, log_p = teacher.softmax(-1), teacher.log_softmax(-1)
    log_q, kl = relative(p, log_p, student - teacher)
    loss = -log_q.gather(-1, labels[:, None])[:, 0]
    return kl, teacher.argmax(-1) == preferred, preferred == labels, loss


def relative(p: Tensor, log_p: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) where the logits of q are those of p plus d; precise for small d.

    It is log Σ p exp(d − Σ p d), so no difference of large numbers is taken: for any token it is
    the logit less its logarithm of probability, and both are smallest at the likeliest.

    Args:
        p: probabilities [T, V] by softmax, which on a CPU is five times faster than exp.
        log_p: their logarithms.
        d: [T, V]; written over.

    Returns:
        log q [T, V], and KL [T] in nats.
    """
    d.sub_(torch.linalg.vecdot(p, d)[:, None]).add_(log_p)
    log_q = d.log_softmax(-1)
    return log_q, d.amax(-1) - log_q.amax(-1)


def logits(hidden: Tensor, head: Tensor) -> Iterator[Tensor]:
    """Logits [n, V] that predict a next token, of last hidden states [N, L, D]; few at a time."""
    for window in hidden:
        for tokens in window[:-1].split(logit_tokens(len(head))):
            yield tokens @ head.T
