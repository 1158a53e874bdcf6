"""Figures as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FIGURES = {
    "KL, mean": "kl",
    "KL, median": "kl_median",
    "KL, 99.9 %": "kl_999",
    "same top-1": "agreement",
    "flips": "flips",
    "perplexity": "perplexity",
    "… over the original's": "perplexity_ratio",
    "bits per byte": "bits_per_byte",
}
"""What they are called → the field of :class:`bitquilt.evaluation.figures.Figures`."""
SHARES = ("agreement", "flips")


def cell(estimate: Mapping[str, float | None], name: str) -> dict[str, str]:
    """A value and its interval; no interval where it is not known."""
    low, mean, high = (estimate[key] for key in ("low", "mean", "high"))
    assert mean is not None
    known = low is not None and high is not None and not math.isnan(low)
    interval = f"{number(low, name)} – {number(high, name)}" if known else ""  # type: ignore[arg-type]
    return {"value": number(mean, name), "interval": interval}


def extent(evaluation: Mapping[str, Any]) -> str:
    """How much text an evaluation is over."""
    figures = next(iter(evaluation["own"].values()))
    return f"{figures['tokens']:,} tokens of {figures['documents']} documents"


def number(value: float, name: str) -> str:
    """A figure with as many digits as it deserves."""
    if name in SHARES:
        return f"{value:.2%}"
    return f"{value:.4f}" if name == "perplexity_ratio" else f"{value:.3g}"
