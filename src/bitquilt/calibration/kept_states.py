"""What each block reads of the calibration text, kept from the pass forward for the pass back.

A GPU keeps the inputs of one block in ``EVERY`` and computes those between again, from the nearest
before them, when the pass back comes there: a pass forward takes a tenth of what the moments of a
block take, and its memory holds three times as much text.

Letters: N windows, L tokens in a window, D model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitquilt.models.blockwise import BlockwiseModel

EVERY = 4
"""A GPU keeps the inputs of one block in so many."""
KEPT_DTYPE = torch.bfloat16
"""What it keeps them in."""


def states_at_once(layers: int) -> int:
    """Return how many blocks' inputs a GPU has at once, of so many blocks."""
    return math.ceil(layers / EVERY) + min(layers, EVERY) - 1


class KeptStates:
    """The inputs of blocks, which are asked for from the last to the first."""

    def __init__(self, model: BlockwiseModel) -> None:
        """Begin with nothing."""
        on_gpu = model.device.type == "cuda"
        self._model, self._every = model, EVERY if on_gpu else 1
        self._dtype = KEPT_DTYPE if on_gpu else torch.float32
        self._kept: dict[int, Tensor] = {}

    def keep(self, index: int, hidden: Tensor) -> None:
        """Keep what a block reads, [N, L, D], if it is one of those that are kept."""
        if index % self._every == 0:
            self._keep(index, hidden)

    @torch.no_grad()
    def take(self, index: int) -> Tensor:
        """Return what a block reads, [N, L, D] as it is kept, and keep it no longer."""
        if index not in self._kept:
            first = index - index % self._every
            hidden = self._kept[first].to(torch.float32, copy=True)
            for between in range(first, index):
                block = self._model.block(between, then=between + 1)
                self._keep(between + 1, self._model.run_all(block, hidden))
        return self._kept.pop(index)

    def _keep(self, index: int, hidden: Tensor) -> None:
        self._kept[index] = hidden.to(self._dtype, copy=True)
