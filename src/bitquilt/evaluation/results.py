"""What an evaluation found, for people and programs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from bitquilt.evaluation.figures import Figures, Measured, difference
from bitquilt.metrics.intervals import LEVEL
from bitquilt.metrics.kl import Estimate
from bitquilt.runtime.files import atomic_write, nan_to_null, read_json

SAME_SIZE = 0.01
"""Files are judged side by side whose sizes exceed that of the smallest of them by no more."""

PRECISION = 1e-6
"""Nats that float32 tells apart in one token's KL."""


@dataclass(frozen=True)
class Check:
    """The same file on an excerpt, in its engine and in torch on the weights read from it."""

    in_engine: Estimate
    """Mean KL(original ‖ engine)."""
    in_torch: Estimate
    """Mean KL(original ‖ torch)."""
    apart: Estimate
    """By how much the first exceeds the second, token by token."""
    between: Estimate
    """Mean KL(torch ‖ engine): what the engine adds by its own arithmetic."""
    tokens: int

    @property
    def agree(self) -> bool:
        """Whether the two may differ by no more than the engine's own arithmetic accounts for."""
        apart, most = self.apart, max(self.between.mean, PRECISION)
        if math.isnan(apart.low):  # too few documents for an interval
            return abs(apart.mean) <= most
        return apart.low <= most and -most <= apart.high


@dataclass(frozen=True)
class TextSample:
    """One question, answered greedily by both."""

    question: str
    original: str
    answer: str


@dataclass(frozen=True)
class Row:
    """One file."""

    name: str
    path: str
    nbytes: int
    sha256: str
    """Of the GGUF file, or of the MLX directory's model.safetensors."""
    bits: float
    """Bits per weight, everything in the file counted."""
    engine: str
    """What computed the figures."""
    figures: Mapping[str, Figures]
    """By domain, see :func:`~bitquilt.evaluation.figures.by_domain`."""
    check: Check
    samples: Sequence[TextSample]


@dataclass(frozen=True)
class Floor:
    """The original, nothing quantized: what is measured below this is noise."""

    name: str
    kl: Estimate
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """Files of one size."""

    names: tuple[str, ...]
    """From the least mean KL up."""
    ahead: tuple[Estimate, ...]
    """By how much the KL of the others exceeds the first's, paired; the intervals hold together."""

    @property
    def winner(self) -> str | None:
        """The first, if it is ahead of every other beyond doubt."""
        return self.names[0] if all(lead.low > 0 for lead in self.ahead) else None


@dataclass(frozen=True)
class Evaluation:
    """What :func:`bitquilt.evaluate` did."""

    original: str
    fingerprint: str
    """Of the original."""
    text: str
    """SHA-256 of the documents."""
    own: Mapping[str, Figures]
    """The original's own figures by domain."""
    rows: Sequence[Row]
    floors: Sequence[Floor]
    comparisons: Sequence[Comparison]
    versions: Mapping[str, str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON types only."""
        found: dict[str, Any] = nan_to_null(asdict(self))
        for row, given in zip(found["rows"], self.rows, strict=True):
            row["check"]["agree"] = given.check.agree
        for comparison, made in zip(found["comparisons"], self.comparisons, strict=True):
            comparison["winner"] = made.winner
        return found


def keep(found: Evaluation) -> None:
    """Put each file's figures beside it, in ``<name>.eval.json``, without those of the others."""
    for row in found.rows:
        alone = replace(found, rows=[row], comparisons=[])
        content = alone.to_dict()
        del content["rows"][0]["path"]  # it may be published
        with atomic_write(kept_at(Path(row.path))) as beside:
            beside.write_text(json.dumps(content, indent=1), encoding="utf-8")


def kept(model: Path) -> dict[str, Any] | None:
    """What :func:`keep` left for a file; None if there is nothing, or it is about other bytes.

    Raises:
        UserError: what is there is no JSON.
    """
    path = kept_at(model)
    if not path.exists():
        return None
    found = read_json(path)
    return found if found["rows"][0]["sha256"] == sha256(model) else None


def kept_at(model: Path) -> Path:
    """Where the figures of a file are kept."""
    return model.with_name(f"{model.name}.eval.json")


def sha256(model: Path) -> str:
    """Of a GGUF file, or of the weights of an MLX directory."""
    weights = model / "model.safetensors" if model.is_dir() else model
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compared(rows: Sequence[Row], measured: Sequence[Measured]) -> list[Comparison]:
    """Files of equal size against each other, on the same tokens.

    Args:
        rows: the files.
        measured: their held-out tokens, in the same order.
    """
    pairs = sorted(zip(rows, measured, strict=True), key=lambda pair: pair[0].nbytes)
    found, group = [], pairs[:1]
    for pair in [*pairs[1:], None]:
        if pair and pair[0].nbytes <= group[0][0].nbytes * (1 + SAME_SIZE):
            group.append(pair)
            continue
        if len(group) > 1:
            found.append(_comparison(group))
        group = [pair] if pair else []
    return found


def _comparison(group: Sequence[tuple[Row, Measured]]) -> Comparison:
    """Bonferroni over all pairs: which file is first was not known before."""
    order = sorted(group, key=lambda pair: _kl(pair[0]).mean)
    level = 1 - (1 - LEVEL) / len(list(combinations(order, 2)))
    first = order[0][1]
    ahead = [difference(other, first, lambda tokens: tokens.kl, level) for _, other in order[1:]]
    return Comparison(tuple(row.name for row, _ in order), tuple(ahead))


def _kl(row: Row) -> Estimate:
    return next(iter(row.figures.values())).kl
