"""How much a matrix's error matters: the share of the residual stream that its sublayer writes.

An importance matrix tells what each matrix reads, so with the weights it tells the power of what
each writes: Σ_c h_c w_rc² for row r. What sublayers add to the residual stream adds up along the
blocks, and a sublayer that writes a tenth of the stream there passes on a tenth of its relative
error. In the logits the stream is normalized, so that relative errors of the stream cost about as
many nats (docs/decisions/imatrix.md has the measurements).

A token with an enormous norm, as the first of a text often is, has most of the mean power in some
columns of the stream. Medians over columns leave it out, and speak for ordinary tokens.

Letters: D model width, the columns of the stream; E experts of a stack, R rows, C columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bitquilt.allocation.space import Float64Array
from bitquilt.streaming.costs import MatrixErrors
from bitquilt.streaming.importance import EMBEDDING, OUTPUT, MatrixImportance
from bitquilt.streaming.source import GgufSource, SourceMatrix

BLOCK = re.compile(r"^(?P<stack>.*?)blk\.(?P<block>\d+)\.(?P<part>.+)\.weight$")
"""The names of tensors in blocks; an encoder's blocks are another stack than its decoder's."""
WRITERS = re.compile(r"(_down|_down_\w+|_output|_out|out_proj|channel_mix_value)$")
"""The parts that write to the residual stream."""
SENSITIVITY = (
    (re.compile(r"^attn_(q|k)(_|$)"), 0.3),
    (re.compile(r"^attn_(v|qkv|kv)"), 0.8),
)
"""What a relative error of parts costs, over that of all others: softmax forgives much of those of
queries and keys."""
USUAL_SENSITIVITY = 1.2
UNKNOWN_SHARE = 0.15
"""The share of the stream where it cannot be told."""
HEAD_NATS = 0.25
"""Nats that a mean square error of a logit costs: half of the mean of p (1 − p), about a half."""
READ_WEIGHTS = 1 << 22
"""Weights that are read at a time."""


@dataclass(frozen=True)
class Sublayer:
    """What a sublayer adds to the residual stream."""

    usual: float
    """Its share of the stream after it, for ordinary tokens."""
    writers: Mapping[str, float]
    """Its matrices that write there → their share, which enormous tokens may raise."""


class ResidualStream:
    """The residual stream of a model, followed along its blocks."""

    def __init__(self, source: GgufSource, importance: Mapping[str, MatrixImportance]) -> None:
        """Add up what all sublayers write; this reads all matrices that write."""
        self._source, self._importance = source, importance
        self._sublayers: dict[tuple[str, str], Sublayer] = {}
        self._powers: dict[str, Float64Array] = {}

    def writers(self) -> list[str]:
        """Return the matrices whose power has to be known, see :meth:`measure`."""
        stream = self._source.matrices.get(EMBEDDING)
        width = None if stream is None else stream.columns
        return [
            name
            for name, matrix in self._source.matrices.items()
            if name in self._importance
            and matrix.rows == width
            and (found := BLOCK.match(name))
            and WRITERS.search(found["part"])
        ]

    def measure(self, name: str) -> None:
        """Work out what a matrix writes to each column of the stream, and remember it."""
        matrix, importance = self._source.matrices[name], self._importance[name]
        power = np.zeros(matrix.rows)
        step = max(1, READ_WEIGHTS // matrix.columns)
        for expert in range(matrix.experts):
            squares = importance.squares[expert] * importance.shares[expert]
            for start in range(0, matrix.rows, step):
                count = min(step, matrix.rows - start)
                rows = self._source.rows(matrix, expert * matrix.rows + start, count)
                power[start : start + count] += np.square(rows) @ squares
        # outputs of the experts of a token are added up, each with its part of a whole
        used = self._source.header.get("expert_used_count", 1) if matrix.experts > 1 else 1
        self._powers[name] = power / max(1, *(used if isinstance(used, list) else [used]))

    def follow(self) -> None:
        """Follow the stream through all blocks, once the writers are measured."""
        if not self._powers:
            return
        stream = self._embedding_power()
        for (stack, sublayer), names in self._in_order():
            written = sum((self._powers[name] for name in names), np.zeros(len(stream)))
            norm = self._norm_after(stack, sublayer)
            if norm is not None:  # it makes what is written as large as its weights
                scale = norm**2 / np.maximum(written.mean(), 1e-30)
                own = {name: self._powers[name].mean() * scale for name in names}
                written = norm**2
            else:
                own = {name: self._powers[name] for name in names}
            stream = stream + written
            typical = max(float(np.median(stream)), 1e-30)
            self._sublayers[stack, sublayer] = Sublayer(
                float(np.median(written)) / typical,
                {
                    name: max(float(np.median(p)) / typical, float(p.sum() / stream.sum()))
                    for name, p in own.items()
                },
            )

    def nats(self, matrix: SourceMatrix, found: MatrixErrors, error: float) -> float:
        """Predict what an error costs, in nats per token.

        Args:
            matrix: that has it.
            found: on all its types; the power of its outputs is what counts.
            error: mean square error of one output.
        """
        relative = error / found.power if found.power > 0 else 0.0
        if matrix.name == OUTPUT:
            return HEAD_NATS * error
        if matrix.name == EMBEDDING:
            return relative + (HEAD_NATS * error if self._source.tied else 0.0)
        place = BLOCK.match(matrix.name)
        if place is None:
            return relative
        sublayer = self._sublayers.get(_place(place))
        share = UNKNOWN_SHARE
        if sublayer is not None:
            share = sublayer.writers.get(matrix.name, sublayer.usual)
        sensitivity = (factor for part, factor in SENSITIVITY if part.match(place["part"]))
        return relative * share * next(sensitivity, USUAL_SENSITIVITY)

    def _embedding_power(self) -> Float64Array:
        """Mean square of each column of the embeddings as blocks read them, from some rows."""
        matrix = self._source.matrices[EMBEDDING]
        step = max(1, matrix.rows // 4096)
        rows = [self._source.rows(matrix, row, 1) for row in range(0, matrix.rows, step)]
        header, scale = self._source.header, 1.0
        if header.architecture.startswith("gemma"):
            scale = math.sqrt(matrix.columns)
        scale = float(header.get("embedding_scale", scale))
        means: Float64Array = np.square(np.concatenate(rows), dtype=np.float64).mean(0)
        return scale**2 * means

    def _in_order(self) -> Iterator[tuple[tuple[str, str], list[str]]]:
        """Yield sublayers in the order of the stream, with the matrices of each that write."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name in self._powers:
            place = BLOCK.match(name)
            assert place is not None
            groups.setdefault(_place(place), []).append(name)

        def position(key: tuple[str, str]) -> tuple[str, int, bool]:
            stack, _, block = key[0].rpartition("/")
            return stack, int(block), key[1] == "ffn"

        for key in sorted(groups, key=position):
            yield key, groups[key]

    def _norm_after(self, block: str, sublayer: str) -> Float64Array | None:
        """Weights of the norm between a sublayer and the stream, in models that have both."""
        stack, _, number = block.rpartition("/")
        mixer, ffn = (
            f"{stack}blk.{number}.post_{part}_norm.weight" for part in ("attention", "ffw")
        )
        if not {mixer, ffn} <= self._source.tensors.keys():
            return None  # a post_attention_norm alone may stand before the feed-forward network
        return self._source.values(ffn if sublayer == "ffn" else mixer).astype(np.float64)


def _place(found: re.Match[str]) -> tuple[str, str]:
    """Which sublayer a tensor is in: ("<stack>/<block>", "ffn" or "mixer")."""
    sublayer = "ffn" if found["part"].startswith(("ffn", "channel_mix")) else "mixer"
    return f"{found['stack']}/{found['block']}", sublayer
