"""Figures as people read them, in the terminal, on the page and on the card."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bitquilt.calibration import corpus
from bitquilt.evaluation.figures import DomainFigures
from bitquilt.evaluation.results import Evaluation
from bitquilt.metrics.intervals import too_few
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


def lacks_documents(figures: Mapping[str, DomainFigures]) -> str:
    """Say why figures, by domain, have no interval; the sentence is empty where all have one."""
    few = [
        f"{domain}: {too_few(own.documents)}"
        for domain, own in figures.items()
        if math.isnan(own.kl.low) and not (domain == "all" and len(figures) > 1)
    ]
    if not few:
        return ""
    among = "; what all domains have together depends on each" if "all" in figures else ""
    return (
        f"{'; '.join(few)}{among}. `bitquilt eval` reads more documents with a larger --tokens, as "
        "long as the text has more, and another text with --text."
    )


def text_read(evaluation: Evaluation) -> str:
    """Say what text an evaluation is over."""
    figures = evaluation.own_overall
    count = f"{figures.tokens:,} tokens of {figures.documents} documents"
    if evaluation.text == corpus.fingerprint(corpus.bundled("held-out")):
        return f"{count} of bitquilt's held-out text, which it never calibrates on"
    return f"{count} of another text (SHA-256 {evaluation.text[:12]})"
