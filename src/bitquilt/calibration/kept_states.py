"""What each block reads of the calibration text, kept from the pass forward for the pass back.

A GPU keeps the inputs of one block in four or so and computes those between again, each from the
one before it, when the pass back comes there: a pass forward takes a tenth of what the moments of a
block take, and its memory holds three times as much text.

Letters: N windows, L tokens in a window, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitquilt.models.blockwise import BlockwiseModel, batch_tokens, batches

KEPT_DTYPE = torch.bfloat16
"""What it keeps them in."""


def every_of(layers: int) -> int:
    """Return of one block in how many a GPU keeps the inputs: what needs least memory at once."""
    return min(range(1, layers + 1), key=lambda every: (_at_once(layers, every), every))


def states_at_once(layers: int) -> int:
    """Return how many blocks' inputs a GPU has at once, of so many blocks."""
    return _at_once(layers, every_of(layers))


def _at_once(layers: int, every: int) -> int:
    return math.ceil(layers / every) + every - 1


class KeptStates:
    """The inputs of blocks, which are asked for from the last to the first."""

    def __init__(self, model: BlockwiseModel) -> None:
        """Begin with nothing."""
        on_gpu = model.device.type == "cuda"
        self._model, self._every = model, every_of(model.checkpoint.layers) if on_gpu else 1
        self._dtype = KEPT_DTYPE if on_gpu else torch.float32
        self._kept: dict[int, Tensor] = {}

    def keep(self, index: int, hidden: Tensor) -> None:
        """Keep what a block reads, [N, L, D], if it is one of those that are kept."""
        if index % self._every == 0:
            self._kept[index] = hidden.to(self._dtype, copy=True)

    @torch.no_grad()
    def take(self, index: int) -> Tensor:
        """Return what a block reads, [N, L, D] as it is kept, and keep it no longer."""
        if index not in self._kept:
            first = index - index % self._every
            for between in range(first, index):
                self._kept[between + 1] = self._after(between)
        return self._kept.pop(index)

    def _after(self, index: int) -> Tensor:
        """Return what a block makes of its inputs, [N, L, D]: only a few windows are in float32."""
        block, read = self._model.block(index, then=index + 1), self._kept[index]
        made = torch.empty_like(read)
        for rows in batches(read, batch_tokens(read.shape[2])):
            made[rows] = self._model.run(block, read[rows].to(torch.float32, copy=True))
        return made
