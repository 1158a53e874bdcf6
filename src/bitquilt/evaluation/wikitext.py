"""The figures of llama.cpp's ``llama-perplexity --kl-divergence``, as other people publish them.

A text is cut into windows of 512 tokens, each beginning with the tokenizer's start token, and the
second half of each window is scored. The tool keeps the original's log-probabilities in 16 bits,
down to 16 nats below the largest; so do these figures, or they would differ from its own.

Source: tools/perplexity/perplexity.cpp of llama.cpp.

Letters: N windows, L tokens in a window, S scored tokens of a window, T tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitquilt.calibration.corpus import Document, read_text
from bitquilt.calibration.text import Encode
from bitquilt.errors import UserError
from bitquilt.metrics.original import OriginalModel
from bitquilt.metrics.teacher import Teacher
from bitquilt.models.blockwise import Advance, logit_tokens

PROTOCOL_CONTEXT = 512
"""Tokens in a window."""
SKIPPED = PROTOCOL_CONTEXT // 2
"""Tokens of a window whose predictions are not scored."""
FEWEST_WINDOWS = 2
"""A text with fewer windows is refused, as the tool does."""
KEPT_NATS = 16.0
"""Nats below the largest that log-probabilities of the original are kept to, and counted to."""
LARGEST_CODE = 65535
"""The largest of the codes that they are kept in."""
CONFIDENCES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""The ends of the ranges of the original's largest probability that KL is told for."""


@dataclass(frozen=True)
class WithError:
    """A mean over tokens with its standard error, which takes tokens for independent."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class ConfidenceFigures:
    """A file on the tokens where the original's largest probability is in one range."""

    low: float
    """The range begins here."""
    high: float
    """The range ends here."""
    kl: WithError
    """The mean KL, in nats per token."""
    same_top: float
    """The share of these tokens where both prefer the same next token."""
    tokens: int
    """The number of these tokens."""


@dataclass(frozen=True, kw_only=True)
class WikitextFigures:
    """What ``llama-perplexity --kl-divergence`` prints of a file, by its own formulas."""

    text: str
    """The name of the text's file."""
    perplexity: WithError
    """Mean PPL(Q), of the file."""
    original_perplexity: WithError
    """Mean PPL(base), of the original."""
    log_ratio: WithError
    """Mean ln(PPL(Q)/PPL(base))."""
    kl: WithError
    """Mean KLD, in nats per token."""
    kl_median: float
    """Median KLD."""
    kl_999: float
    """99.9 % KLD."""
    kl_max: float
    """Maximum KLD."""
    rms_dp: WithError
    """RMS Δp: how much the probability of the text's own token changes."""
    same_top: WithError
    """Same top p: the share of tokens where both prefer the same next token."""
    by_confidence: Sequence[ConfidenceFigures]
    """The file by how sure the original is; ranges without tokens are left out."""
    tokens: int
    """The number of tokens that were scored."""


@dataclass(frozen=True, kw_only=True)
class ProtocolText:
    """A text in the windows of the protocol."""

    name: str
    """The name of its file."""
    tokens: Tensor
    """int64 [N, L]."""

    @classmethod
    def of(cls, path: Path, encode: Encode) -> ProtocolText:
        """Read a file as ``llama-perplexity -f`` does: whole, without a last line's end.

        Raises:
            UserError: the file cannot be read, or the text is too short.
        """
        text = read_text(path).removesuffix("\n")
        ids, start = (encode(Document("text", path.name, one, None)) for one in (text, ""))
        return cls(name=path.name, tokens=wikitext_windows(path.name, ids, start))


@dataclass(frozen=True, kw_only=True)
class ProtocolReference:
    """The original on such a text."""

    name: str
    """The name of the text's file."""
    teacher: Teacher

    @classmethod
    def of(cls, original: OriginalModel, text: ProtocolText, advance: Advance) -> ProtocolReference:
        """Run the original over the text, or take what an earlier evaluation left.

        ``advance`` is told of tokens × weights as they are done.
        """
        return cls(name=text.name, teacher=original.on(text.tokens, advance=advance))

    def figures(self, student: Iterator[Tensor]) -> WikitextFigures:
        """Measure a file by its logits, as :func:`scored_tokens` takes them."""
        return wikitext_figures(self.name, scored_tokens(self.teacher, student))


@dataclass(frozen=True)
class ScoredTokens:
    """One figure per scored token, each [N · S]."""

    kl: NDArray[np.float64]
    loss: NDArray[np.float32]
    """−log p of the text's own token under the file, nats."""
    original_loss: NDArray[np.float32]
    """The same under the original."""
    dp: NDArray[np.float32]
    """By how much the file's probability of the text's own token exceeds the original's."""
    same_top: NDArray[np.bool_]
    """Whether both prefer the same next token."""
    confidence: NDArray[np.float32]
    """The original's largest probability."""


def wikitext_windows(name: str, ids: Sequence[int], start: Sequence[int]) -> Tensor:
    """Cut a text into windows, int64 [N, L]; the rest that fills none is left out.

    Args:
        name: of the text, for errors.
        ids: all of its tokens, with the start token where the tokenizer adds one.
        start: the tokens that an empty text has; the first of them begins every window.

    Raises:
        UserError: the text is too short.
    """
    count = len(ids) // PROTOCOL_CONTEXT
    if count < FEWEST_WINDOWS:
        raise UserError(
            f"{name} has {len(ids):,} tokens, and llama-perplexity's protocol takes at least "
            f"{FEWEST_WINDOWS * PROTOCOL_CONTEXT:,}; give a longer text to --wikitext, for example "
            "WikiText-2's wiki.test.raw"
        )
    windows = torch.tensor(ids[: count * PROTOCOL_CONTEXT]).view(count, PROTOCOL_CONTEXT)
    if start:
        windows[:, 0] = start[0]
    return windows


@torch.no_grad()
def scored_tokens(teacher: Teacher, student: Iterator[Tensor]) -> ScoredTokens:
    """Compare a file's logits with the original's on the second half of each window.

    Args:
        teacher: the original on windows [N, L].
        student: the file's logits [n, V] of consecutive tokens, as many at a time as whoever
            computes them likes, but of one window; those of its last token may be left out.
    """
    at_once = logit_tokens(len(teacher.head))
    parts: list[tuple[Tensor, ...]] = []
    for window, hidden in zip(teacher.tokens, teacher.hidden, strict=True):
        labels, done, predicted = window[1:].to(hidden.device), 0, len(window) - 1
        while done < predicted:
            given = next(student)[: predicted - done].to(hidden.device)
            for part in torch.arange(done, done + len(given)).split(at_once):
                if len(here := part[part >= SKIPPED]):
                    own = given[here - done]
                    base = teacher.logits(hidden[here])
                    parts.append(_compared(base, own, labels[here]))
            done += len(given)
    columns = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return ScoredTokens(*columns)


def _compared(base: Tensor, own: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Give the fields of :class:`ScoredTokens`, each [T], of logits [T, V] in float32."""
    log_p = _kept_log_probabilities(base)
    top, preferred = log_p.max(-1)
    log_sum = own.amax(-1) + (own - own.amax(-1, keepdim=True)).exp().double().sum(-1).log().float()
    terms = (log_p - own).add_(log_sum[:, None]).mul_(log_p.exp())
    kl = terms.masked_fill_(log_p <= -KEPT_NATS, 0).sum(-1, dtype=torch.float64)
    loss = log_sum - own.gather(-1, labels[:, None])[:, 0]
    original = -log_p.gather(-1, labels[:, None])[:, 0]
    dp = (-loss).exp() - (-original).exp()
    return kl, loss, original, dp, own.argmax(-1) == preferred, top.exp()


def _kept_log_probabilities(logits: Tensor) -> Tensor:
    """Give the log-probabilities [T, V] that the tool's file of 16-bit codes gives back."""
    high = logits.amax(-1, keepdim=True)
    low = torch.maximum(logits.amin(-1, keepdim=True), high - KEPT_NATS)
    log_sum = (logits - high).exp().double().sum(-1, keepdim=True).log().float()
    scale = (high - low) / LARGEST_CODE
    codes = ((1 / scale) * (logits - low)).round_().clamp_(min=0)
    codes.nan_to_num_(nan=0.0, posinf=0.0)  # where all logits are equal
    return codes.mul_(scale).add_(low - high - log_sum)


def wikitext_figures(text: str, found: ScoredTokens) -> WikitextFigures:
    """Summarize the scored tokens of a file by the tool's formulas.

    Args:
        text: the name of the text's file.
        found: what a file made of it.
    """
    own, base = _mean(found.loss), _mean(found.original_loss)
    covariance = _covariance(found.loss, found.original_loss)
    square = _mean(found.dp * found.dp)
    rms = square.value**0.5
    top = float(found.same_top.mean())
    count = len(found.kl)
    return WikitextFigures(
        text=text,
        perplexity=_exponential(own),
        original_perplexity=_exponential(base),
        log_ratio=WithError(
            own.value - base.value,
            max(0.0, own.error**2 + base.error**2 - 2 * covariance) ** 0.5,
        ),
        kl=_mean(found.kl),
        kl_median=float(np.median(found.kl.astype(np.float32))),
        kl_999=_quantile(found.kl, 0.999),
        kl_max=float(found.kl.max()),
        rms_dp=WithError(rms, 0.5 / rms * square.error if rms else 0.0),
        same_top=WithError(top, (top * (1 - top) / (count - 1)) ** 0.5),
        by_confidence=_by_confidence(found),
        tokens=count,
    )


def _by_confidence(found: ScoredTokens) -> list[ConfidenceFigures]:
    places = np.digitize(found.confidence, CONFIDENCES[1:-1])
    ranges = enumerate(itertools.pairwise(CONFIDENCES))
    some = [(ends, here) for place, ends in ranges if (here := places == place).any()]
    return [
        ConfidenceFigures(
            low=low,
            high=high,
            kl=_mean(found.kl[here]),
            same_top=float(found.same_top[here].mean()),
            tokens=int(here.sum()),
        )
        for (low, high), here in some
    ]


def _mean(values: NDArray[np.floating]) -> WithError:
    """Average values [T], squared in their own precision as the tool squares them."""
    count = len(values)
    mean = float(values.mean(dtype=np.float64))
    variance = float((values * values).mean(dtype=np.float64)) - mean**2
    return WithError(mean, (variance / (count - 1)) ** 0.5 if variance > 0 and count > 10 else 0.0)


def _covariance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Give the covariance of two means over the same tokens [T]."""
    means = one.mean(dtype=np.float64) * other.mean(dtype=np.float64)
    return float(((one * other).mean(dtype=np.float64) - means) / (len(one) - 1))


def _exponential(log: WithError) -> WithError:
    value = float(np.exp(log.value))
    return WithError(value, value * log.error)


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """Interpolate between the values on both sides, as the tool does, place in float32."""
    ranked = np.sort(values.astype(np.float32))
    place = np.float32(share) * np.float32(len(ranked) - 1)
    before = int(place)
    rest = place - np.float32(before)
    after = ranked[min(before + 1, len(ranked) - 1)]
    return float((np.float32(1) - rest) * ranked[before] + rest * after)
