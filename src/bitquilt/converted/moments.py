"""What calibration says of a base's matrix: its partners' moments, put together as it is.

A base's matrix may be a join of several parameters, a slice, a stack of experts, transposed, or
have its columns in another order; the moments follow.

Letters: E experts of a stack, R rows of a matrix, C columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitquilt.bases.live_statistics import UnitStatistics
from bitquilt.bases.partners import Partner, PartnerPiece
from bitquilt.calibration.output_shrinkage import USUAL_OUTPUT_SHARE
from bitquilt.calibration.shrinkage import USUAL_SHARE, shrink_

FEW_TOKENS = 256
"""An expert that as many tokens reached has a Hessian that is half its own."""

Inputs = tuple[object, ...]
"""What stands for what a matrix reads; equal for matrices that read the same."""


class BaseMoments:
    """The moments of the matrices of a base."""

    def __init__(self, statistics: UnitStatistics, partners: Mapping[str, Partner | None]) -> None:
        """Join the statistics of parameters and the partners of the base's matrices."""
        self._statistics, self._partners = statistics, partners
        self._sums = statistics.sums()
        self._pooled: tuple[str, Tensor | None] = ("", None)

    def inputs(self, name: str, expert: int) -> Inputs | None:
        """Return what stands for the inputs; None where they have no Hessian."""
        pieces = self._pieces(name, expert)
        if not pieces or any(not self._statistics.inputs_of(piece.unit) for piece in pieces):
            return None
        found = {
            (
                self._statistics.inputs_of(piece.unit),
                None if piece.columns is None else tuple(piece.columns.tolist()),
            )
            for piece in pieces
        }
        return (len(self._experts(name)) > 1 and str(expert), *sorted(found, key=repr))

    def hessian(self, name: str, expert: int) -> Tensor | None:
        """Return the mean of x xᵀ of what a matrix reads, weighted and shrunk, float32 [C, C].

        That of an expert which few tokens reached goes towards that of all experts of the layer,
        where these read the residual stream, and else towards its own diagonal.
        """
        own = self._mean_hessian(name, expert)
        if len(self._experts(name)) == 1:
            return None if own is None else shrink_(own, USUAL_SHARE)
        reads_stream = self._partner_width(name) == self._statistics.width
        pooled = self._of_layer(name) if reads_stream else None
        if own is None:
            return None if pooled is None else shrink_(pooled.clone(), USUAL_SHARE)
        trust = self._tokens(name, expert) / (self._tokens(name, expert) + FEW_TOKENS)
        if pooled is None:
            return shrink_(own, 1 - (1 - USUAL_SHARE) * trust)
        return shrink_(own.mul_(trust).add_(pooled, alpha=1 - trust), USUAL_SHARE)

    def importance(self, name: str, expert: int) -> Tensor | None:
        """Return the mean square of each input, float32 [C]; None where nothing was seen.

        Of an embedding that is only looked up in it is that of the gradients there.
        """
        pieces = [piece for piece in self._pieces(name, expert) if piece.unit in self._sums]
        if not pieces:
            table = self._table(name)
            return None if table is None else _columns(table[1], table[0]).float()
        rows = sum(len(piece.rows) for piece in pieces)
        means = [
            _columns(self._sums[piece.unit].squares / max(self._sums[piece.unit].count, 1), piece)
            * (len(piece.rows) / rows)
            for piece in pieces
        ]
        return torch.stack(means).sum(0).float()

    def rows(self, name: str, expert: int, count: int) -> Tensor | None:
        """Return E[g²] of each output, float64 [R]; None where nothing came back."""
        found = torch.zeros(count, dtype=torch.float64)
        seen = False
        for piece in self._pieces(name, expert):
            known = self._statistics.rows(piece.unit)
            if known is not None:
                found[piece.rows] = known[piece.source_rows]
                seen = True
        return found if seen else None

    def output_moment(self, name: str, expert: int, count: int) -> Tensor | None:
        """Return E[g gᵀ] of the outputs, shrunk, float32 [R, R]; None where it is not known of all.

        The share is the usual one: these moments are not summed fold by fold.
        """
        found: Tensor | None = None
        for piece in self._pieces(name, expert):
            known = self._statistics.output_moment(piece.unit)
            if known is None:
                return None
            at, there = (one.to(known.device) for one in (piece.rows, piece.source_rows))
            found = known.new_zeros(count, count) if found is None else found
            found[at[:, None], at] = known[there[:, None], there]
        return None if found is None else shrink_(found, USUAL_OUTPUT_SHARE)

    def looked_up(self, name: str, count: int) -> tuple[Tensor, Tensor] | None:
        """Return E[g²] [C] of an embedding's columns and the share of each row [R], or None.

        Rows that match nothing are zeros, as that of a padding token is, and have no share.
        """
        table = self._table(name)
        if table is None:
            return None
        piece, columns, known = table
        shares = known.new_zeros(count)
        shares[piece.rows] = known[piece.source_rows]
        return _columns(columns, piece), shares

    def is_table(self, name: str) -> bool:
        """Tell whether a matrix is an embedding or makes the logits.

        One Hessian for rows of such different use does not help (docs/decisions/gptq.md).
        """
        pieces = self._pieces(name, 0)
        return self._table(name) is not None or any(
            piece.unit.parameter == self._statistics.head for piece in pieces
        )

    def is_known(self, name: str) -> bool:
        """Tell whether anything is known of what an error of a matrix costs."""
        return self._table(name) is not None or any(
            self._statistics.rows(piece.unit) is not None
            for expert in range(len(self._experts(name)))
            for piece in self._pieces(name, expert)
        )

    def _table(self, name: str) -> tuple[PartnerPiece, Tensor, Tensor] | None:
        """The piece that an embedding is, and what is known of its columns and rows there."""
        pieces = self._pieces(name, 0)
        if len(self._experts(name)) != 1 or len(pieces) != 1:
            return None
        (piece,) = pieces
        table = self._statistics.looked_up(piece.unit.parameter)
        return None if table is None or piece.unit.transposed else (piece, *table)

    def _experts(self, name: str) -> tuple[tuple[PartnerPiece, ...], ...]:
        partner = self._partners.get(name)
        return ((),) if partner is None else partner.experts

    def _pieces(self, name: str, expert: int) -> tuple[PartnerPiece, ...]:
        return self._experts(name)[expert]

    def _partner_width(self, name: str) -> int:
        sums = (self._sums.get(p.unit) for own in self._experts(name) for p in own)
        return next((len(one.squares) for one in sums if one is not None), 0)

    def _tokens(self, name: str, expert: int) -> float:
        units = [piece.unit for piece in self._pieces(name, expert)]
        return max((self._sums[unit].count for unit in units if unit in self._sums), default=0.0)

    def _mean_hessian(self, name: str, expert: int) -> Tensor | None:
        """The mean over the pieces, by their rows; equal inputs are read once."""
        shares: dict[Inputs, float] = {}
        example: dict[Inputs, PartnerPiece] = {}
        pieces = self._pieces(name, expert)
        rows = sum(len(piece.rows) for piece in pieces)
        for piece in pieces:
            order = None if piece.columns is None else tuple(piece.columns.tolist())
            key: Inputs = (self._statistics.inputs_of(piece.unit), order)
            shares[key] = shares.get(key, 0.0) + len(piece.rows) / rows
            example[key] = piece
        total: Tensor | None = None
        for key, share in shares.items():
            own = self._statistics.hessian(example[key].unit)
            if own is None:
                return None
            own = _columns(_columns(own, example[key]).T, example[key]).T
            total = own * share if total is None else total.add_(own, alpha=share)
        return total

    def _of_layer(self, name: str) -> Tensor | None:
        """The mean over all experts, each with its share of the tokens; kept for the next."""
        if self._pooled[0] != name:
            total, tokens = None, 0.0
            for expert in range(len(self._experts(name))):
                own = self._mean_hessian(name, expert)
                if own is not None:
                    share = self._tokens(name, expert)
                    total = own * share if total is None else total.add_(own, alpha=share)
                    tokens += share
            self._pooled = (name, None if total is None else total.div_(max(tokens, 1.0)))
        return self._pooled[1]


def _columns(values: Tensor, piece: PartnerPiece) -> Tensor:
    """Put what belongs to a unit's columns, [C, …], into the base's order."""
    return values if piece.columns is None else values[piece.columns]
