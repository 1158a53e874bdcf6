"""What a model is like on a text, domain by domain, each figure with its 95 % interval.

Letters: T judged tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bitquilt.evaluation.reference import Reference
from bitquilt.metrics.intervals import Documents, through
from bitquilt.metrics.kl import Estimate, TokenFigures

UNCERTAIN = 0.2
"""The share of a trace's tokens that are told apart: those where the original is least certain.
They decide where the reasoning goes (Wang et al. 2025, Beyond the 80/20 Rule)."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Figures:
    """Means and quantiles over the tokens of one domain, or of all with equal weight."""

    kl: Estimate
    """Mean KL(original ‖ this), nats a token."""
    kl_median: Estimate
    kl_999: Estimate
    """The KL that one token in a thousand exceeds."""
    agreement: Estimate
    """Share of tokens where both prefer the same next token."""
    flips: Estimate
    """Share where exactly one of the two prefers the text's own token (Dutta et al. 2024)."""
    perplexity: Estimate
    perplexity_ratio: Estimate
    """Over the original's, token by token."""
    bits_per_byte: Estimate
    tokens: int
    documents: int


@dataclass(frozen=True)
class Measured:
    """The judged tokens of one text under one model; every array is [T]."""

    kl: Floats
    agreement: Floats
    flips: Floats
    loss: Floats
    excess: Floats
    """The loss beyond the original's."""
    nbytes: Floats
    """Bytes of text that a token stands for, on average over its window."""
    entropy: Floats
    """The original's."""
    document: NDArray[np.int64]
    domain: NDArray[np.str_]

    @classmethod
    def of(cls, reference: Reference, found: TokenFigures, nbytes: NDArray[np.int64]) -> Measured:
        """Per-token figures [N, L − 1] without the tokens that are not judged.

        Args:
            reference: the original on the same text.
            found: the model on it.
            nbytes: of each window's judged tokens [N].
        """
        text = reference.text
        kept = text.judged
        per_token = nbytes / np.maximum(kept.sum(1), 1)
        return cls(
            found.kl[kept],
            found.agreement[kept],
            (found.correct != reference.own.correct)[kept].astype(np.float32),
            found.loss[kept],
            (found.loss - reference.own.loss)[kept],
            np.repeat(per_token, kept.sum(1)).astype(np.float32),
            reference.entropy[kept],
            text.documents,
            text.domains,
        )

    def where(self, kept: NDArray[np.bool_]) -> Measured:
        """Some of the tokens."""
        return Measured(*(getattr(self, field.name)[kept] for field in fields(self)))

    def figures(self) -> Figures:
        """All figures of these tokens."""
        documents = Documents.of(self.document, self.domain)
        return Figures(
            documents.mean(self.kl),
            documents.quantile(self.kl, 0.5),
            documents.quantile(self.kl, 0.999),
            documents.mean(self.agreement),
            documents.mean(self.flips),
            through(documents.mean(self.loss), math.exp),
            through(documents.mean(self.excess), math.exp),
            documents.ratio(self.loss / math.log(2), self.nbytes),
            len(self.kl),
            len(documents.stratum),
        )


def by_domain(texts: Sequence[Measured]) -> dict[str, Figures]:
    """``all`` held-out domains with equal weight, then each; traces, and their uncertain tokens."""
    found = {}
    held_out, *traces = texts
    names = sorted(set(held_out.domain.tolist()))
    if len(names) > 1:
        found["all"] = held_out.figures()
    for name in names:
        found[name] = held_out.where(held_out.domain == name).figures()
    for text in traces:
        found["traces"] = text.figures()
        least_certain = text.entropy >= np.quantile(text.entropy, 1 - UNCERTAIN)
        found["traces, uncertain"] = text.where(least_certain).figures()
    return found


def difference(
    one: Measured, other: Measured, figure: Callable[[Measured], Floats], level: float
) -> Estimate:
    """By how much one model's figure exceeds another's on the same tokens, paired."""
    documents = Documents.of(one.document, one.domain)
    return documents.mean(figure(one) - figure(other), level)
