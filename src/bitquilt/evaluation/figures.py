"""What a model is like on a text, domain by domain, each figure with its 95 % interval.

Letters: T scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from bitquilt.calibration.text import KINDS
from bitquilt.evaluation.reference import Reference, TokenValues
from bitquilt.evaluation.traces import ANSWERS, TRACES
from bitquilt.metrics.intervals import Documents, exponential, through
from bitquilt.metrics.kl import Estimate, TokenFigures

UNCERTAIN = 0.2
"""The share of the answers' tokens that are told apart: those where the original is least certain.
They decide where the reasoning goes (Wang et al. 2025, Beyond the 80/20 Rule)."""


@dataclass(frozen=True, kw_only=True)
class DomainFigures:
    """Means and quantiles over the tokens of one domain, or of several."""

    kl: Estimate
    """The mean KL(original ‖ this), in nats per token."""
    kl_median: Estimate
    """The KL that half of the tokens exceed."""
    kl_999: Estimate
    """The KL that one token in a thousand exceeds."""
    agreement: Estimate
    """The share of tokens where both prefer the same next token."""
    flips: Estimate
    """The share of tokens where exactly one of the two prefers the text's own token (Dutta et al.
    2024)."""
    perplexity: Estimate
    """The perplexity of the text under this model."""
    perplexity_ratio: Estimate
    """This model's perplexity over the original's, token by token."""
    bits_per_byte: Estimate
    """The bits that this model needs for a byte of the text."""
    tokens: int
    """The number of tokens that were scored."""
    documents: int
    """The number of documents that they are from."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The scored tokens of one text under one model; every array is [T]."""

    kl: TokenValues
    agreement: TokenValues
    flips: TokenValues
    loss: TokenValues
    excess: TokenValues
    """The loss beyond the original's."""
    nbytes: TokenValues
    """Bytes of text that a token stands for, on average over its window."""
    entropy: TokenValues
    """The original's."""
    document: NDArray[np.int64]
    domain: NDArray[np.str_]

    @classmethod
    def of(cls, reference: Reference, found: TokenFigures, nbytes: NDArray[np.int64]) -> Measured:
        """Per-token figures [N, L − 1] without the tokens that are not scored.

        Args:
            reference: the original on the same text.
            found: the model on it.
            nbytes: of each window's scored tokens [N].
        """
        text = reference.text
        kept = text.scored
        per_token = nbytes / np.maximum(kept.sum(1), 1)
        return cls(
            kl=found.kl[kept],
            agreement=found.agreement[kept],
            flips=(found.correct != reference.own.correct)[kept].astype(np.float32),
            loss=found.loss[kept],
            excess=(found.loss - reference.own.loss)[kept],
            nbytes=np.repeat(per_token, kept.sum(1)).astype(np.float32),
            entropy=reference.entropy[kept],
            document=text.documents,
            domain=text.domains,
        )

    def where(self, kept: NDArray[np.bool_]) -> Measured:
        """Some of the tokens."""
        return Measured(**{field.name: getattr(self, field.name)[kept] for field in fields(self)})

    def figures(self, *, domains_apart: bool = True) -> DomainFigures:
        """All figures of these tokens.

        Args:
            domains_apart: whether domains are strata of equal weight, which takes documents enough
                in each of them, rather than all documents drawn from one.
        """
        documents = Documents.of(self.document, self.domain if domains_apart else None)
        return DomainFigures(
            kl=documents.positive(self.kl),
            kl_median=documents.quantile(self.kl, 0.5),
            kl_999=documents.quantile(self.kl, 0.999),
            agreement=documents.share(self.agreement),
            flips=documents.share(self.flips),
            perplexity=through(documents.positive(self.loss), exponential),
            perplexity_ratio=through(documents.mean(self.excess), exponential),
            bits_per_byte=documents.positive(self.loss / math.log(2), self.nbytes),
            tokens=len(self.kl),
            documents=len(documents.stratum),
        )

    def by_kind(self, calibrated: Collection[str]) -> dict[str, Measured]:
        """``unlike`` and ``like``: the tokens of domains that are not and that are ``calibrated``;
        a kind of which there are none is left out.
        """
        like = np.isin(self.domain, list(calibrated))
        kinds = zip(KINDS, (~like, like), strict=True)
        return {kind: self.where(kept) for kind, kept in kinds if kept.any()}


def by_domain(
    texts: Sequence[Measured], calibrated: Collection[str] | None = None
) -> dict[str, DomainFigures]:
    """Figures of each kind of held-out text, and of each domain; of the original's answers, and of
    their uncertain tokens.

    Args:
        texts: the held-out text, then the answers, if there are any.
        calibrated: the domains of the calibration text, which tell the kinds ``unlike`` and
            ``like`` apart; None where nobody knows them: then there is ``all``, in which domains
            have equal weight, unless there is only one.
    """
    found = {}
    held_out, *answers = texts
    names = sorted(set(held_out.domain.tolist()))
    if calibrated is not None:
        for kind, text in held_out.by_kind(calibrated).items():
            found[kind] = text.figures(domains_apart=False)
    elif len(names) > 1:
        found["all"] = held_out.figures()
    for name in names:
        found[name] = held_out.where(held_out.domain == name).figures()
    for text in answers:
        name = str(text.domain[0])  # traces, or answers
        found[name] = text.figures()
        least_certain = text.entropy >= np.quantile(text.entropy, 1 - UNCERTAIN)
        found[f"{name}, uncertain"] = text.where(least_certain).figures()
    return found


def domains_of(names: Collection[str]) -> list[str]:
    """Give those of the names that :func:`by_domain` uses that are domains of held-out text."""
    answers = (TRACES, ANSWERS)
    others = {"all", *KINDS, *answers, *(f"{name}, uncertain" for name in answers)}
    return [name for name in names if name not in others]


def difference(
    one: Measured, other: Measured, figure: Callable[[Measured], TokenValues], level: float
) -> Estimate:
    """By how much one model's figure exceeds another's on the same tokens, paired."""
    documents = Documents.of(one.document, one.domain)
    return documents.mean(figure(one) - figure(other), level)
