"""Figures as people read them, in the terminal, on the page and on the card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bitquilt.calibration import corpus
from bitquilt.evaluation.figures import DomainFigures
from bitquilt.evaluation.results import Evaluation
from bitquilt.metrics.intervals import FEWEST_BEYOND, too_few
from bitquilt.metrics.kl import Estimate

HEADINGS = {
    "kl": "KL, mean",
    "kl_median": "KL, median",
    "kl_999": "KL, 99.9 %",
    "agreement": "same top-1",
    "flips": "flips",
    "perplexity": "perplexity",
    "perplexity_ratio": "… over the original's",
    "bits_per_byte": "bits per byte",
}
"""A field of :class:`bitquilt.evaluation.figures.DomainFigures` → what tables call it."""
NO_INTERVAL = "no interval"
"""What stands for an interval that there is too little text for."""
RARE = 1000 * FEWEST_BEYOND
"""Tokens that an interval of the value that one in a thousand exceeds needs."""
PERCENTAGES = ("agreement", "flips")
"""The fields that are shares."""


class FigureText(NamedTuple):
    """A figure in digits."""

    value: str
    interval: str
    """Its 95 % interval, or :data:`NO_INTERVAL`."""

    def __str__(self) -> str:
        return f"{self.value} [{self.interval}]"


def number(value: float, field: str) -> str:
    """Write a figure with as many digits as it deserves."""
    if field in PERCENTAGES:
        return f"{value:.2%}"
    if field == "perplexity_ratio":
        return f"{value:.4f}"
    if field == "perplexity":  # 26,907 rather than 2.69e+04
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:.3g}"


def figure_text(estimate: Estimate, field: str) -> FigureText:
    """Write a figure and its interval."""
    value = number(estimate.mean, field)
    if math.isnan(estimate.low):
        return FigureText(value, NO_INTERVAL)
    return FigureText(value, f"{number(estimate.low, field)} – {number(estimate.high, field)}")


def answers_read(figures: Mapping[str, DomainFigures]) -> str:
    """Say what the answers are that files were measured on; nothing where they were on none.

    Args:
        figures: of a model by domain.
    """
    for name, kind in (("traces", "the reasoning"), ("answers", "the text")):
        if (found := figures.get(name)) is not None:
            return (
                f"“{name}” is {kind} of {found.documents} answers that the original wrote itself, "
                f"{found.tokens:,} tokens; “uncertain” is the fifth of them with the highest "
                "entropy."
            )
    return ""


def lacks_documents(figures: Mapping[str, DomainFigures]) -> str:
    """Say why figures, by domain, have no interval; the sentence is empty where all have one."""
    few = [
        f"{domain}: {too_few(own.documents)}"
        for domain, own in figures.items()
        if math.isnan(own.kl.low) and not (domain == "all" and len(figures) > 1)
    ]
    if few and "all" in figures:
        few.append("an interval over all domains needs one in each domain")
    rare = [
        f"{domain}: too few tokens for the interval of the 99.9 % KL ({own.tokens:,}; at least "
        f"{RARE:,} are needed)"
        for domain, own in figures.items()
        if own.tokens < RARE and not math.isnan(own.kl.low)
    ]
    if not few and not rare:
        return ""
    return (
        f"Some figures have no interval: {'; '.join(few + rare)}. `bitquilt eval` reads more of "
        "the text with a larger --tokens, and another text with --text."
    )


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """What is known of one file, all of it on one text."""

    kl: Estimate
    """The mean KL(original ‖ file), in nats per token."""
    agreement: Estimate
    """The share of tokens where both prefer the same next token."""
    perplexity: Estimate
    """The perplexity of the text under the file."""
    own_perplexity: Estimate
    """The perplexity of the text under the original."""
    engine: str
    """What computed it."""
    text: str
    """The text, in words. Figures of files compare where this is the same."""
    documents: int
    """The number of documents that it is from."""
    evaluated: bool
    """Whether ``bitquilt eval`` measured it, and not ``quantize`` at its end."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> MeasuredFile:
        """Give the figures of the one file of an evaluation."""
        (file,) = evaluation.files
        own, overall, text = evaluation.own_overall, file.overall, text_name(evaluation.text)
        return cls(
            kl=overall.kl,
            agreement=overall.agreement,
            perplexity=overall.perplexity,
            own_perplexity=own.perplexity,
            engine=file.engine,
            text=f"{own.tokens:,} tokens of {own.documents} documents of {text}",
            documents=own.documents,
            evaluated=True,
        )

    @property
    def lacking(self) -> str:
        """Why the figures have no interval, as a sentence; empty where they have one."""
        return f" There are {too_few(self.documents)}." if math.isnan(self.kl.low) else ""


def text_name(fingerprint: str) -> str:
    """Say what text has a fingerprint, as :func:`bitquilt.calibration.corpus.fingerprint` does."""
    if fingerprint == corpus.fingerprint(corpus.bundled("held-out")):
        return "bitquilt's held-out text, which it never calibrates on"
    return f"another text (fingerprint {fingerprint[:12]})"
