"""The figures of llama-perplexity's protocol, named and written as the tool prints them."""

from __future__ import annotations

from bitquilt.evaluation.wikitext import PROTOCOL_CONTEXT, ConfidenceFigures, WikitextFigures

TOOL_NAMES = {
    "perplexity": "Mean PPL(Q)",
    "original_perplexity": "Mean PPL(base)",
    "log_ratio": "Mean ln(PPL(Q)/PPL(base))",
    "kl": "Mean KLD",
    "kl_median": "Median KLD",
    "kl_999": "99.9% KLD",
    "kl_max": "Maximum KLD",
    "rms_dp": "RMS Δp",
    "same_top": "Same top p",
}
"""A field of :class:`bitquilt.evaluation.wikitext.WikitextFigures` → its name in the tool."""
_SHARES = ("rms_dp", "same_top")


def tool_figure(figures: WikitextFigures, field: str) -> str:
    """Write a figure with the digits and the standard error that the tool prints."""
    found = getattr(figures, field)
    if field in _SHARES:
        return f"{100 * found.value:.3f} ± {100 * found.error:.3f} %"
    if isinstance(found, float):
        return f"{found:z.6f}"
    return f"{found.value:z.6f} ± {found.error:.6f}"


def confidence_cells(figures: ConfidenceFigures) -> tuple[str, str, str, str]:
    """Write the range, the tokens in it, their KL and the share of the same top token."""
    return (
        f"{figures.low:.0%} – {figures.high:.0%}",
        f"{figures.tokens:,}",
        f"{figures.kl.value:.6f} ± {figures.kl.error:.6f}",
        f"{figures.same_top:.3%}",
    )


def protocol_note(figures: WikitextFigures) -> str:
    """Say how the figures were measured."""
    return (
        f"Measured in the way of `llama-perplexity --kl-divergence`, on {figures.text}, in windows "
        f"of {PROTOCOL_CONTEXT} tokens. The second half of each window is scored, "
        f"{figures.tokens:,} tokens in all; ± is the standard error over tokens. The base is the "
        "original in float32."
    )
