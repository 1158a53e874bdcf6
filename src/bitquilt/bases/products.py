"""What the parameters of any torch model are multiplied with, seen where torch multiplies.

Modules differ in every architecture: linear layers, fused ones, stacks of experts, products that
are written out. All end in a few operators of ATen, and an operand's memory tells which parameter,
and which part of it, it is. So no class of transformers is named here.

Letters: T tokens, M, K, N sides of a product; a parameter is a stack [E, A, B] of matrices, E = 1
for a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitquilt.bases.partners import Unit

_ATEN = torch.ops.aten
_OPERANDS = {
    _ATEN.mm.default: 0,
    _ATEN.bmm.default: 0,
    _ATEN.addmm.default: 1,
    _ATEN.baddbmm.default: 1,
}
"""Operator → which of its arguments is the first factor."""


@dataclass
class InputSums:
    """What the columns of one matrix were multiplied with."""

    squares: Tensor
    """Sum of the squares of each input, float64, where they were computed."""
    count: float = 0.0
    """Tokens."""


class WatchedProducts(TorchDispatchMode):
    """While it is entered, products with parameters leave sums of squares in :attr:`sums`.

    Zeros in a batch of products are no tokens: there, experts get zeros for those of others.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], lent: Mapping[int, tuple[str, Tensor]] | None = None
    ) -> None:
        """Watch parameters.

        Args:
            parameters: of a model; each may have several names.
            lent: what :attr:`bitquilt.bases.lent_weights.LentWeights.known` says of them meanwhile.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._lent = {} if lent is None else lent
        self.sums: dict[Unit, InputSums] = {}
        self._known = {
            tensor.untyped_storage().data_ptr(): (name, tensor)
            for name, tensor in reversed(list(parameters.items()))
            if tensor.ndim >= 2 and tensor.is_contiguous()
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at the operands of products, and do what was asked for."""
        first = _OPERANDS.get(func)
        if first is not None:
            left, right = args[first], args[first + 1]
            if left.ndim == 2:
                self._see(left, right, batched=False)
            else:
                for one, other in zip(left, right, strict=True):
                    self._see(one, other, batched=True)
        return func(*args, **(kwargs or {}))

    def _see(self, left: Tensor, right: Tensor, batched: bool) -> None:
        """Note [M, K] @ [K, N] if one of the factors is a part of a parameter."""
        if (known := self._parameter(right)) is not None:
            self._note(*known, right.T, left, batched)
        elif (known := self._parameter(left)) is not None:
            self._note(*known, left, right.T, batched)

    def _parameter(self, operand: Tensor) -> tuple[str, Tensor] | None:
        address = operand.untyped_storage().data_ptr()
        known = self._lent.get(address) or self._known.get(address)
        return known if known and operand.dtype == known[1].dtype else None

    def _note(
        self, name: str, parameter: Tensor, part: Tensor, inputs: Tensor, batched: bool
    ) -> None:
        """Add inputs [T, K] to what ``part`` [N, K] of a parameter reads."""
        high, wide = parameter.shape[-2:]
        transposed = part.stride(1) == wide and wide > 1 and part.stride(0) == 1
        if not transposed and part.stride(1) != 1:
            return
        offset = int(part.storage_offset()) - int(parameter.storage_offset())
        index, inside = divmod(offset, high * wide)
        row, column = divmod(inside, wide)
        start, width = (row, high) if transposed else (column, wide)
        if start + part.shape[1] > width:  # it spans several rows, as no product of a matrix does
            return
        last = index if transposed else (offset + (part.shape[0] - 1) * wide) // (high * wide)
        for each in range(index, last + 1):
            self.note(Unit(name, each, transposed), width, start, inputs, batched)

    def note(self, unit: Unit, width: int, start: int, inputs: Tensor, batched: bool) -> None:
        """Take inputs [T, K] of a product with columns ``start`` … ``start + K`` of a unit.

        Args:
            unit: which matrix, in the order of columns that the product reads.
            width: its columns.
            start: the first of those that are read.
            inputs: what is multiplied with them.
            batched: whether rows of zeros may stand for tokens of others.
        """
        tokens = inputs[(inputs != 0).any(1)] if batched else inputs
        squares = tokens.detach().square().sum(0).double()
        if unit not in self.sums:
            self.sums[unit] = InputSums(squares.new_zeros(width))
        found = self.sums[unit]
        found.squares[start : start + len(squares)] += squares
        found.count += len(tokens)
