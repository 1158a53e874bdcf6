"""Generation around a backend: whole characters, stops, limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from bitquilt.engines.backend import generate
from bitquilt.engines.engine import ModelInfo, Sampling

END = 256


class Parrot:
    """A model whose tokens are bytes and which says one sentence."""

    info = ModelInfo(257, None, {}, Sampling())

    def __init__(self, text: str) -> None:
        self._answer = [*text.encode(), END]

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def ends_turn(self, token: int) -> bool:
        return token == END

    def window(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def begin(self, capacity: int) -> None:
        self._said = 0

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = np.zeros(257, dtype=np.float32)
        logits[self._answer[self._said]] = 1.0
        self._said += 1
        return logits


@pytest.mark.parametrize("text", ["", "plain", "é🙂👩‍🚀 你好", "\ufffd odd \ufffd"])
def test_pieces_are_whole_characters(text: str) -> None:
    pieces = list(generate(Parrot(text), [1], Sampling(), 100))
    assert "".join(pieces) == text
    assert all(len(piece) == 1 for piece in pieces if "\ufffd" not in text)


def test_no_more_than_asked_for() -> None:
    assert "".join(generate(Parrot("abcdef"), [1], Sampling(), 3)) == "abc"
