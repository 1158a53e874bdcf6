"""What an engine's own code has to offer; everything else is built on it here, once.

A backend is a loaded model in the current process. :mod:`.child` runs one in a process of its own.
Letters: L tokens in a window, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitquilt.engines.engine import ModelInfo, Sampling
from bitquilt.engines.sampling import Sampler


class Backend(Protocol):
    """A loaded model."""

    info: ModelInfo

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Text to ids, control tokens in the text included."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text without control tokens; half a character becomes U+FFFD."""
        ...

    def ends_turn(self, token: int) -> bool:
        """Whether the model has finished when it says this token."""
        ...

    def window(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits at every position of a fresh context, float32 [L, V]."""
        ...

    def begin(self, capacity: int) -> None:
        """Start a fresh context for at most that many tokens."""
        ...

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Append tokens to the context; logits after the last one, float32 [V]."""
        ...


def generate(
    backend: Backend, prompt: Sequence[int], sampling: Sampling, max_tokens: int
) -> Iterator[str]:
    """Continue a prompt until the model ends its turn, as pieces of whole characters."""
    sampler = Sampler(sampling, prompt)
    backend.begin(len(prompt) + max_tokens)
    text = _TextStream(backend)
    logits = backend.feed(prompt)
    for remaining in range(max_tokens, 0, -1):
        token = sampler.draw(logits)
        if backend.ends_turn(token):
            break
        if piece := text.push(token):
            yield piece
        if remaining > 1:
            logits = backend.feed([token])
    if piece := text.rest():
        yield piece


class _TextStream:
    """Tokens in, text out: holds back what may be half a character.

    Each piece is the difference between two decodings that start at the same earlier token, for
    many tokenizers decode a token differently at the start of a text.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tokens: list[int] = []
        self._said = ""

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._backend.decode(self._tokens)
        if text.endswith("\ufffd"):
            return ""
        piece = text[len(self._said) :]
        # Keep the last token alone as context, so that a long answer is not decoded again.
        self._tokens = self._tokens[-1:]
        self._said = self._backend.decode(self._tokens)
        return piece

    def rest(self) -> str:
        return self._backend.decode(self._tokens)[len(self._said) :]
