"""Figures as people read them, in the terminal, on the page and on the card."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bitquilt.calibration import corpus
from bitquilt.calibration.text import KINDS
from bitquilt.evaluation.figures import DomainFigures, domains_of
from bitquilt.evaluation.results import Evaluation
from bitquilt.metrics.intervals import FEWEST, FEWEST_BEYOND, too_few
from bitquilt.metrics.kl import Estimate
from bitquilt.metrics.teacher import Figures

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
LISTED = 4
"""Domains that lack an interval are listed together if they are more than these."""
TOKEN_STEP = 1024
"""Tokens that would be enough are told in steps of so many."""
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
        return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.4g}"
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
                f"{found.tokens:,} tokens; “uncertain” is the fifth of these tokens where the "
                "original's predictions have the highest entropy."
            )
    return ""


def lacks_documents(figures: Mapping[str, DomainFigures]) -> str:
    """Say why figures, by domain, have no interval; the sentence is empty where all have one."""
    without = [
        name
        for name, own in figures.items()
        if math.isnan(own.kl.low) and not (name == "all" and len(figures) > 1)
    ]
    few = [f"{name}: {too_few(figures[name].documents)}" for name in without]
    if len(few) > LISTED:
        few = [f"too few documents for an interval in {_counted(without, figures)}"]
    if few and "all" in figures:
        few.append("an interval over all domains needs one in each domain")
    scarce = {
        name: own.tokens
        for name, own in figures.items()
        if own.tokens < RARE and not math.isnan(own.kl.low)
    }
    rare = [
        f"{name}: too few tokens for the interval of the 99.9 % KL ({tokens:,}; at least "
        f"{RARE:,} are needed)"
        for name, tokens in scarce.items()
    ]
    if len(rare) > LISTED:
        rare = [
            f"too few tokens for the interval of the 99.9 % KL ({RARE:,} are needed) in "
            f"{_counted(scarce, figures)}"
        ]
    if not few and not rare:
        return ""
    none = all(math.isnan(own.kl.low) for own in figures.values())
    some = "No KL has an" if none else "Some figures have no"
    return (
        f"{some} interval: {'; '.join(few + rare)}. `bitquilt eval` reads more of "
        f"the text with a larger --tokens{_enough_tokens(figures)}, and another text with --text."
    )


def _counted(names: Collection[str], figures: Mapping[str, DomainFigures]) -> str:
    """Say how many domains these are, of how many, and name what among them is none."""
    domains = domains_of(figures)
    count = sum(name in domains for name in names)
    others = [name for name in names if name not in domains]
    said = [f"{count} of {len(domains)} domains"] * (count > 0)
    return ", and in ".join([*said, *[" and ".join(f"“{name}”" for name in others)] * bool(others)])


def _enough_tokens(figures: Mapping[str, DomainFigures]) -> str:
    """Say about how many tokens would give intervals; empty where only answers lack them.

    A text has tokens of each domain, and documents, in the same shares however much is read.
    """
    domains = [figures[name] for name in domains_of(figures)]
    needed = [
        max(FEWEST / own.documents, RARE / own.tokens)
        for own in domains
        if math.isnan(own.kl.low) or own.tokens < RARE
    ]
    if not needed:
        return ""
    tokens = TOKEN_STEP * math.ceil(max(needed) * sum(own.tokens for own in domains) / TOKEN_STEP)
    return f" (about {tokens:,} may be enough)"


@dataclass(frozen=True, kw_only=True)
class KindFigures:
    """A file on one kind of text, beside its original."""

    kl: Estimate
    """The mean KL(original ‖ file), in nats per token."""
    agreement: Estimate
    """The share of tokens where both prefer the same next token."""
    perplexity: Estimate
    """The perplexity of the text under the file."""
    own_perplexity: Estimate
    """The perplexity of the text under the original."""
    tokens: int
    """The number of tokens that were scored."""
    documents: int
    """The number of documents that they are from."""

    @classmethod
    def of(cls, file: Figures | DomainFigures, own: Figures | DomainFigures) -> KindFigures:
        """Put the figures of a file and of its original, on the same text, together."""
        return cls(
            kl=file.kl,
            agreement=file.agreement,
            perplexity=file.perplexity,
            own_perplexity=own.perplexity,
            tokens=own.tokens,
            documents=own.documents,
        )


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """What is known of one file, all of it on one text."""

    kinds: Mapping[str, KindFigures]
    """``unlike`` and ``like`` the calibration text, as far as they were read; or one of another
    name, where nobody knows which of them it is. Files are compared by the first."""
    engine: str
    """What computed it."""
    source: str
    """Where the text is from, in words."""
    evaluated: bool
    """Whether ``bitquilt eval`` measured it, and not ``quantize`` at its end."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> MeasuredFile:
        """Give the figures of the one file of an evaluation."""
        (file,) = evaluation.files
        first = next(iter(file.figures))
        names = [kind for kind in KINDS if kind in file.figures] if first in KINDS else [first]
        return cls(
            kinds={
                name: KindFigures.of(file.figures[name], evaluation.own[name]) for name in names
            },
            engine=file.engine,
            source=text_name(evaluation.text),
            evaluated=True,
        )

    @property
    def headline(self) -> KindFigures:
        """The figures that files are compared by."""
        return next(iter(self.kinds.values()))

    @property
    def kl(self) -> Estimate:
        """The mean KL that files are compared by."""
        return self.headline.kl

    @property
    def text(self) -> str:
        """The text, in words. Figures of files compare where this is the same."""
        return f"{self._read} of {self.source}"

    @property
    def _read(self) -> str:
        parts = [
            f"{one.tokens:,} tokens of {one.documents} documents{_alike(kind)}"
            for kind, one in self.kinds.items()
        ]
        return " and ".join(parts) + "," * (len(parts) > 1)

    @property
    def lacking(self) -> str:
        """Why figures have no interval, as a sentence; empty where they have one."""
        return "".join(
            f" There are {too_few(one.documents)}{_alike(kind)}."
            for kind, one in self.kinds.items()
            if math.isnan(one.kl.low)
        )

    @property
    def told(self) -> str:
        """The KL on each kind of text, in words, the headline first."""
        first, *others = self.kinds.items()
        said = f"a mean KL of {_value(first[1])} nats per token from the original"
        if first[0] in KINDS:
            said += f" on text {first[0]} the calibration text"
        return said + "".join(f" ({_value(one)} on text {kind} it)" for kind, one in others)


def _value(figures: KindFigures) -> str:
    return figure_text(figures.kl, "kl").value


def _alike(kind: str) -> str:
    return f" {kind} the calibration text" if kind in KINDS else ""


def kind_label(kind: str) -> str:
    """Say in a table which text a row is about; nothing where there is only one and it has no
    name.
    """
    return f"on {kind} text" if kind in KINDS else ""


def kinds_note(kinds: Collection[str]) -> str:
    """Say below a table what the kinds of text in its rows are; nothing where they have no name."""
    named = [kind for kind in KINDS if kind in kinds]
    if not named:
        return ""
    if len(named) == 1:
        (other,) = set(KINDS) - set(named)
        return f"There is no held-out text {other} the calibration text."
    return (
        "Like text is of the same domains as the calibration text; unlike text is of other domains."
    )


def text_name(fingerprint: str) -> str:
    """Say what text has a fingerprint, as :func:`bitquilt.calibration.corpus.fingerprint` does."""
    if fingerprint == corpus.fingerprint(corpus.bundled("held-out")):
        return "bitquilt's held-out text, which it never calibrates on"
    return f"another text (fingerprint {fingerprint[:12]})"
