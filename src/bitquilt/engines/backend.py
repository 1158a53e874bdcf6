"""What an engine's own code has to offer; everything else is built on it, once.

A backend is a loaded model in the current process. :mod:`.child` runs one in a process of its own.
Letters: B rows, L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitquilt.engines.engine import ModelInfo

Logits = npt.NDArray[np.float32]


class Backend(Protocol):
    """A loaded model, and the context of the prompts that it continues now."""

    info: ModelInfo

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Text to ids, control tokens in the text included."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text without control tokens; half a character becomes U+FFFD."""
        ...

    def control_text(self, token: int) -> str | None:
        """The name of a control token, None for any other."""
        ...

    def ends_turn(self, token: int) -> bool:
        """Whether the model has finished when it says this token."""
        ...

    def window(self, tokens: Sequence[int]) -> Logits:
        """Logits at every position of a fresh context, float32 [L, V]."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], room: int) -> tuple[Logits, int]:
        """Read one prompt per row, and compute only what the context does not hold already.

        The rows may be those of now, each a few tokens longer, with others among them.

        Args:
            prompts: none of them empty.
            room: how many tokens will be appended to a row at most.

        Returns:
            Logits after each prompt, float32 [B, V], and the number of tokens computed.
        """
        ...

    def step(self, tokens: Sequence[int]) -> Logits:
        """Append one token to each row; logits after them, float32 [B, V], valid until the next."""
        ...

    def retain(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, which are numbered anew, in this order."""
        ...


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of a prompt need not be computed: never all, for its last logits are wanted.

    Args:
        held: the tokens whose keys and values are in the context.
        prompt: the tokens to read.
    """
    limit = min(len(held), len(prompt) - 1)
    return next((i for i in range(limit) if held[i] != prompt[i]), limit)
