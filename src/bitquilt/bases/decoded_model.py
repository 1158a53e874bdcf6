"""A model of transformers that computes with the numbers that a quantized file has.

What the file's matrices decode to goes back to where the base's numbers came from
(:mod:`bitquilt.bases.partners`): converters' splits, joins, stacks and orders are undone.
Parameters that are lent (:mod:`bitquilt.bases.lent_weights`) are lent with other numbers.

Letters: E experts of a stack, R rows of a matrix, C columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Self

from torch import Tensor, nn

from bitquilt.bases.deferred_stacks import float_numbers
from bitquilt.bases.lent_weights import lent_weights
from bitquilt.bases.partners import Partner, PartnerPiece

KEPT_DECODED = 2 << 30
"""Bytes of numbers that are kept from one use to the next; the others are decoded each time."""


class DecodedModel(AbstractContextManager["DecodedModel"]):
    """While it is entered, a model has a file's numbers."""

    def __init__(
        self,
        model: nn.Module,
        partners: Mapping[str, Partner | None],
        decode: Callable[[str], Tensor],
    ) -> None:
        """Take a model; matrices without a partner stay as they are in it.

        Args:
            model: as :func:`bitquilt.bases.importance.load_transformers_model` gives it.
            partners: of the matrices of the base that the file was made from.
            decode: gives a matrix of the file, float32 [R, C] or [E, R, C].
        """
        self._decode, self._lent = decode, lent_weights(model)
        self._parameters = dict(model.named_parameters())
        self._pieces: dict[str, list[tuple[str, int, PartnerPiece]]] = {}
        for name, partner in partners.items():
            for expert, pieces in enumerate(partner.experts if partner else ()):
                for piece in pieces:
                    own = self._pieces.setdefault(piece.unit.parameter, [])
                    own.append((name, expert, piece))
        self._kept: dict[str, Tensor] = {}
        self._room = KEPT_DECODED
        self._last: tuple[str, Tensor] | None = None
        inside = self._lent.lent
        self._outside = {name: self._assembled(name) for name in self._pieces if name not in inside}
        """The numbers of parameters that are not lent; the model's own while it has these."""

    def __enter__(self) -> Self:
        """Put the file's numbers into the model."""
        self._exchange()
        self._lent.others = self._numbers
        return self

    def __exit__(self, *_: object) -> None:
        """Put the model's own back."""
        self._exchange()
        self._lent.others = lambda _: None

    def _exchange(self) -> None:
        for name, numbers in self._outside.items():
            parameter = self._parameters[name]
            self._outside[name], parameter.data = parameter.data, numbers

    def _numbers(self, name: str) -> Tensor | None:
        """Return what a parameter is lent with; None where the file has nothing of it."""
        if name not in self._pieces or name in self._outside:
            return None
        if name in self._kept:
            return self._kept[name]
        found = self._assembled(name)
        if found.nbytes <= self._room:
            self._room -= found.nbytes
            self._kept[name] = found
        return found

    def _assembled(self, name: str) -> Tensor:
        """Put a parameter together from the matrices of the file that have parts of it."""
        found = float_numbers(self._parameters[name])
        stack = found.view(-1, *found.shape[-2:])
        for matrix, expert, piece in self._pieces[name]:
            own = stack[piece.unit.index]
            own = own.T if piece.unit.transposed else own
            rows = self._matrix(matrix)[expert][piece.rows].to(found.device)
            at = piece.source_rows.to(found.device)
            if piece.columns is None:
                own[at] = rows
            else:
                own[at[:, None], piece.columns.to(found.device)] = rows
        return found

    def _matrix(self, name: str) -> Tensor:
        """Decode a matrix [E, R, C]; the last one stays, for its parts are asked for in turn."""
        if self._last is None or self._last[0] != name:
            whole = self._decode(name)
            self._last = (name, whole.reshape(-1, *whole.shape[-2:]))
        return self._last[1]
