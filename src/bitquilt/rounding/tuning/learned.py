"""Scales and norms as a file stores them, and the changes to them that are learned.

A change is counted in what it does: 0.001 moves the weights of a block, or a norm, by a thousandth
of their size. So one learning rate serves every type and norm. A step and an offset of one block
are nearly the same direction where codes are unsigned, so the step's changes are made orthogonal to
the offset's.

The forward pass sees the numbers as the file will hold them, integers too, and gradients pass that
rounding as if it were not there (straight-through; Bengio, Léonard and Courville 2013).

Letters: R rows, C columns, B blocks along a row, k = C / B weights in a block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bitquilt.qtypes.qtype import Unpacked

FURTHEST = 10.0
"""A change of 1 changes a scale by this factor at most: some blocks hardly notice theirs."""


@dataclass(frozen=True)
class StoredRange:
    """The numbers that a file can store: a dtype, and a range."""

    dtype: torch.dtype
    low: float = -math.inf
    high: float = math.inf

    def __call__(self, exact: Tensor) -> Tensor:
        """Return the numbers as stored, float32, with the gradient of the exact ones."""
        whole = exact if self.dtype.is_floating_point else exact.round()
        there = whole.clamp(self.low, self.high).to(self.dtype).float()
        return exact + (there - exact).detach()


class Learned(ABC):
    """Tensors of a file that are learned together."""

    def __init__(self, start: Mapping[str, Tensor], stored: StoredRange) -> None:
        self.start = {name: numbers.float() for name, numbers in start.items()}
        self.stored = stored
        self.changes = {
            name: torch.zeros_like(numbers).requires_grad_() for name, numbers in self.start.items()
        }
        """What the optimizer moves: float32, of the tensors' shapes, zero at first."""

    def values(self) -> Unpacked:
        """Return the numbers as a file would hold them now, float32."""
        steps = self._steps()
        return {n: self.stored(start + steps[n]) for n, start in self.start.items()}

    @abstractmethod
    def _steps(self) -> Unpacked:
        """Return what the changes add to the numbers."""


class Norm(Learned):
    """The weight of a norm, [D]; it multiplies by weight + offset."""

    def __init__(self, weight: Tensor, offset: float, stored: StoredRange) -> None:
        super().__init__({"weight": weight}, stored)
        self._size = weight + offset

    def _steps(self) -> Unpacked:
        return {"weight": self._size * self.changes["weight"]}


class Scales(Learned):
    """The scales of a matrix, each [R, B]: a step, or a step and an offset of each block."""

    def __init__(
        self, start: Unpacked, decode: Callable[[Unpacked], Tensor], stored: StoredRange
    ) -> None:
        """Begin with the scales as rounded.

        Args:
            start: one or two fields, the step's first.
            decode: scales → weights [R, C], linear.
            stored: how the file stores them.
        """
        super().__init__(start, stored)
        self._step, *offsets = self.start
        self._offset = offsets[0] if offsets else None
        self._reach = {name: torch.ones_like(numbers) for name, numbers in self.start.items()}
        if self._offset is not None:
            self._separate(decode, self._step, self._offset)

    def _separate(self, decode: Callable[[Unpacked], Tensor], step: str, offset: str) -> None:
        """Set how far each may go, and what an offset does to keep out of its step's way."""
        start = self.start
        blocks = start[step].shape[1]
        by_step, by_offset = (
            # [R, C] -> [R, B, k]
            decode(start | {other: torch.zeros_like(start[other])}).unflatten(1, (blocks, -1))
            for other in (offset, step)
        )
        size = (by_step + by_offset).norm(dim=-1)
        share = _ratio((by_step * by_offset).sum(-1), by_offset.square().sum(-1))
        own = by_step.addcmul_(share.unsqueeze(-1), by_offset, value=-1.0).norm(dim=-1)
        self._share = share
        self._reach[step] = _ratio(size, own).clamp_max(FURTHEST)
        self._reach[offset] = _ratio(size, by_offset.norm(dim=-1)).clamp_max(FURTHEST)

    def _steps(self) -> Unpacked:
        relative = {name: self._reach[name] * change for name, change in self.changes.items()}
        if self._offset is not None:
            relative[self._offset] = relative[self._offset] - self._share * relative[self._step]
        return {name: start * relative[name] for name, start in self.start.items()}


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)
