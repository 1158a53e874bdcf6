"""What an engine has read and its context must forget, kept outside of it for when it is asked for.

Attention looks at every cell of a context that several rows share, so a context that keeps what
nobody needs at the moment makes each step slower; llama.cpp's server, too, moves it out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bitquilt.engines.backend import common_prefix

State = npt.NDArray[np.uint8]
"""Keys and values of a sequence, in the engine's own form."""


class SetAside:
    """The states of sequences, as many as have so many tokens together; the oldest go first."""

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[int, ...], State] = OrderedDict()

    def keep(self, tokens: Sequence[int], state: State, most: int) -> None:
        """Keep a sequence in place of what it continues.

        Args:
            tokens: that it holds.
            state: of the engine, after them.
            most: the tokens of all sequences together.
        """
        added = tuple(tokens)
        for known in [known for known in self._states if added[: len(known)] == known]:
            del self._states[known]
        self._states[added] = state
        while sum(map(len, self._states)) > most:
            self._states.popitem(last=False)

    def find(self, prompt: Sequence[int], least: int) -> tuple[list[int], State] | None:
        """Find the sequence that has most of a prompt; None where none has more than ``least``."""
        shared = {known: common_prefix(list(known), prompt) for known in self._states}
        best = max(shared, key=shared.__getitem__, default=())
        if shared.get(best, 0) <= least:
            return None
        self._states.move_to_end(best)
        return list(best), self._states[best]
