"""What the code of one engine has to offer; everything else is built on it once, for all.

A backend is a loaded model in the current process. :mod:`.child` runs one in a process of its own.
Letters: B rows, L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitquilt.engines.constraint import Grammars
from bitquilt.engines.engine import ModelInfo

Logits = npt.NDArray[np.float32]


class Backend(Protocol):
    """A loaded model, and the context of the rows that it continues now."""

    info: ModelInfo

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Text to ids; control tokens that are written out in the text become theirs."""
        ...

    def see(self, image: bytes) -> list[int]:
        """An image to ids; see :class:`~bitquilt.engines.engine.Engine`."""
        ...

    def decode(self, tokens: Sequence[int], special: bool = False) -> str:
        """Ids to text, with control tokens if ``special``; half a character becomes U+FFFD."""
        ...

    def control_text(self, token: int) -> str | None:
        """Return the name of a control token; None for any other token."""
        ...

    def ends_turn(self, token: int) -> bool:
        """Tell whether the model ends its turn with this token."""
        ...

    @property
    def grammars(self) -> Grammars:
        """What grammars are compiled by, for this model's tokens."""
        ...

    def window(self, tokens: Sequence[int]) -> Logits:
        """Read tokens in an empty context; logits after each of them, float32 [L, V]."""
        ...

    def read(self, tokens: Sequence[int]) -> Iterator[Logits]:
        """Read tokens as ``window`` does; logits after each, a few rows at a time."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        """Read one prompt per row, and compute only what the context does not hold already.

        The new rows take the place of the present ones. Often they are the same, each a few tokens
        longer, and some more.

        Args:
            prompts: the tokens of each row; none is empty.
            room: how many tokens are appended to a row afterwards, at most.

        Returns:
            Logits after each prompt, float32 [B, V], and the number of tokens computed.
        """
        ...

    def step(self, tokens: Sequence[int]) -> Logits:
        """Append one token to each row.

        Returns:
            Logits after them, float32 [B, V], valid until the next call.
        """
        ...

    def retain(self, rows: Sequence[int]) -> None:
        """Keep only these rows, which are then numbered from 0 in this order."""
        ...


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Count the tokens of a prompt that need not be computed; one at least must be, for its logits.

    Args:
        held: the tokens whose keys and values are in the context.
        prompt: the tokens to read.
    """
    limit = min(len(held), len(prompt) - 1)
    if held[:limit] == prompt[:limit]:  # the usual case, many times as fast
        return limit
    return next((i for i in range(limit) if held[i] != prompt[i]), limit)
