"""Loading of the block that is needed next, while a GPU works with another.

Reading a block's weights and copying them takes about as long as some text takes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

BlockState = dict[str, Tensor]
"""The weights of a block, by their names in it."""


class BlockAhead:
    """One thread and one stream of a GPU, which load one block ahead."""

    def __init__(self, load: Callable[[int], BlockState]) -> None:
        """Take what loads the weights of a block by its number."""
        self._load = load
        self._pool = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream()
        self._coming: tuple[int, Future[BlockState]] | None = None

    def start(self, index: int) -> None:
        """Begin to load a block."""
        self._coming = index, self._pool.submit(self._beside, index)

    def take(self, index: int) -> BlockState:
        """Return a block: the one that was begun, or whichever is asked for instead."""
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != index:
            return self._load(index)
        state, current = coming[1].result(), torch.cuda.current_stream()
        current.wait_stream(self._stream)
        for tensor in state.values():
            tensor.record_stream(current)  # its memory is not used again before it has been read
        return state

    def _beside(self, index: int) -> BlockState:
        with torch.cuda.stream(self._stream), torch.no_grad():
            return self._load(index)
