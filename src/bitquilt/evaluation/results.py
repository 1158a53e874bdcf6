"""What an evaluation found, for people and programs.

These dataclasses are the schema of ``bitquilt eval --json`` and of ``<name>.eval.json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from bitquilt.evaluation.figures import DomainFigures, Measured, difference
from bitquilt.evaluation.wikitext import WikitextFigures
from bitquilt.metrics.intervals import LEVEL
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.records import to_json
from bitquilt.targets.engine_check import SPREAD

SAME_SIZE = 0.01
"""Files are compared with each other if their sizes exceed that of the smallest by no more."""

PRECISION = 1e-6
"""The nats that float32 can tell apart in one token's KL."""


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """One file on an excerpt of the text: its engine, and torch on the weights read from it."""

    in_engine: Estimate
    """The mean KL(original ‖ engine)."""
    in_torch: Estimate
    """The mean KL(original ‖ torch)."""
    apart: Estimate
    """The amount by which the first exceeds the second, token by token."""
    between: Estimate
    """The mean KL(torch ‖ engine): what the engine adds by its own arithmetic."""
    tokens: int
    """The number of tokens that were scored."""

    @property
    def agree(self) -> bool:
        """Whether the two may differ by no more than the engine's own arithmetic accounts for."""
        most = max(self.between.mean, PRECISION) + SPREAD * self.in_torch.mean
        if math.isnan(self.apart.low):  # too few documents for an interval
            return abs(self.apart.mean) <= most
        return self.apart.low <= most and -most <= self.apart.high


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """One question, answered greedily by the original and by the file."""

    question: str
    """What both were asked."""
    original: str
    """The answer of the original."""
    answer: str
    """The answer of the file."""


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """What was measured of one file."""

    name: str
    """The name for tables."""
    path: str | None
    """The place on this machine; null in what may be published."""
    nbytes: int
    """The size on disk, everything counted."""
    sha256: str
    """The hash of the GGUF file, or of the MLX directory's model.safetensors."""
    bits: float
    """Bits per weight of the tensors, as llama.cpp and mlx-lm count them."""
    bits_on_disk: float
    """Bits per weight of everything on disk, tokenizer and metadata too."""
    engine: str
    """What computed the figures."""
    figures: Mapping[str, DomainFigures]
    """The figures by domain, see :func:`~bitquilt.evaluation.figures.by_domain`."""
    check: EngineCheck
    """The comparison of the engine with torch."""
    samples: Sequence[TextSample]
    """A few answers; none where the model has no chat template."""
    wikitext: WikitextFigures | None = None
    """The figures of llama-perplexity's protocol, if they were asked for."""

    @property
    def overall(self) -> DomainFigures:
        """The figures that files are compared by: on text unlike the bundled calibration text, or,
        of another text, over all its domains.
        """
        return next(iter(self.figures.values()))


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The original with nothing quantized: a divergence below this one is noise."""

    name: str
    """The arithmetic that was used."""
    kl: Estimate
    """The mean KL from the original in float32."""
    tokens: int
    """The number of tokens that were scored."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Files of the same size."""

    names: Sequence[str]
    """The files, from the least mean KL up."""
    ahead: Sequence[Estimate]
    """The amounts by which the KL of the others exceeds the first's, paired; the intervals hold
    together."""

    @property
    def winner(self) -> str | None:
        """The first, if it is ahead of every other beyond doubt."""
        return self.names[0] if all(lead.low > 0 for lead in self.ahead) else None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of :func:`bitquilt.evaluate`."""

    original: str
    """The name of the original."""
    fingerprint: str
    """The fingerprint of the original."""
    text: str
    """The SHA-256 of the documents that were read."""
    own: Mapping[str, DomainFigures]
    """The original's own figures by domain."""
    files: Sequence[FileResult]
    """The files, in the order they were given."""
    floors: Sequence[NoiseFloor]
    """What is noise."""
    comparisons: Sequence[Comparison]
    """The files of the same size against each other."""
    versions: Mapping[str, str]
    """The versions of everything that computes."""
    seconds: float
    """The time that the evaluation took."""

    @property
    def own_overall(self) -> DomainFigures:
        """The original's own figures on the text that files are compared by."""
        return next(iter(self.own.values()))

    def to_dict(self) -> dict[str, Any]:
        """Give the schema in JSON types, with what properties derive from it."""
        found: dict[str, Any] = to_json(self)
        for file, one in zip(found["files"], self.files, strict=True):
            file["check"]["agree"] = one.check.agree
        for entry, comparison in zip(found["comparisons"], self.comparisons, strict=True):
            entry["winner"] = comparison.winner
        return found


def same_size_comparisons(
    files: Sequence[FileResult], measured: Sequence[Measured]
) -> tuple[Comparison, ...]:
    """Compare files of equal size with each other, on the same tokens.

    Args:
        files: the files.
        measured: their tokens of the text that files are compared by, in the same order.
    """
    pairs = sorted(zip(files, measured, strict=True), key=lambda pair: pair[0].nbytes)
    found, group = [], pairs[:1]
    for pair in [*pairs[1:], None]:
        if pair and pair[0].nbytes <= group[0][0].nbytes * (1 + SAME_SIZE):
            group.append(pair)
            continue
        if len(group) > 1:
            found.append(_comparison(group))
        group = [pair] if pair else []
    return tuple(found)


def _comparison(group: Sequence[tuple[FileResult, Measured]]) -> Comparison:
    """Compare one group, with Bonferroni over all pairs: which is first was not known before."""
    order = sorted(group, key=lambda pair: pair[0].overall.kl.mean)
    level = 1 - (1 - LEVEL) / len(list(combinations(order, 2)))
    first = order[0][1]
    ahead = [difference(other, first, lambda tokens: tokens.kl, level) for _, other in order[1:]]
    return Comparison(names=tuple(one.name for one, _ in order), ahead=tuple(ahead))
